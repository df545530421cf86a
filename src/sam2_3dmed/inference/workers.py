"""A batch in other processes: of this machine, of a Ray cluster, or of a SLURM cluster."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from sam2_3dmed.errors import ConfigError, UserError
from sam2_3dmed.inference.batch import Job, Outcome, Report, predict_batch, predict_each
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import require_not_cancelled
from sam2_3dmed.processes.map_cases import num_processors
from sam2_3dmed.processes.slurm import SECONDS_BETWEEN_LOOKS, how_it_ended, submit
from sam2_3dmed.processes.worker_pool import Died, share_out

if TYPE_CHECKING:
    from submitit import Job as Task

# These take seconds to import. The second is imported when a network is built.
_PRELOAD = ("sam2_3dmed.inference.predictor", "transformers.models.sam2.modeling_sam2")
_RAY_TRIES = 2


def assign_devices(device: str | None, workers: int | None) -> list[str | None]:
    """The device of each worker process.

    Args:
        device: one, or several with commas between them, which the workers take in turn; None: a GPU if there is one.
        workers: None: one for each device.

    Raises:
        ConfigError: fewer workers than devices.
    """
    devices: list[str | None] = [name.strip() or None for name in device.split(",")] if device else [None]
    if workers is not None and workers < len(devices):
        raise ConfigError(f"--workers {workers}: {len(devices)} devices need as many workers")
    return [devices[number % len(devices)] for number in range(workers or len(devices))]


def limit_threads(threads: int) -> None:
    """Compute with at most this many threads."""
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


def in_processes(
    job: Job, inputs: Sequence[Input], report: Report, *, devices: Sequence[str | None], cancel: Event | None = None
) -> None:
    """Run a job in one process for each device. A process that dies costs only the input that kills two processes.

    Raises:
        Cancelled: `cancel` was set. UserError: the model cannot be loaded.
    """
    threads = max(1, num_processors() // len(devices))
    for index, outcome in share_out(partial(_work, job, threads), inputs, devices, _PRELOAD, cancel):
        if isinstance(outcome, Died):
            item = inputs[index]
            outcome = Outcome(item.name, error=f"{item.source}: {outcome.reason}")
        report(index, outcome)


def _work(job: Job, threads: int, device: str | None, inputs: Iterator[tuple[int, Input]], report: Report) -> None:
    limit_threads(threads)
    predict_each(job.load(device=device), inputs, job.results, report)


def on_ray(
    job: Job, inputs: Sequence[Input], report: Report, *, workers: int, device: str | None, cancel: Event | None = None
) -> None:
    """Run a job in workers of the Ray cluster at RAY_ADDRESS, or of a new one on this machine.

    Each worker loads the model once and gets one input at a time. A worker that dies is started again, and its input is
    tried once more; an input that kills two workers is reported as failed.

    Raises:
        Cancelled: `cancel` was set. ConfigError: the extra is missing, or the cluster has no room for the workers.
    """
    with ray_cluster(workers, use_gpus=device != "cpu") as (threads, gpus):
        import ray.data

        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False
        try:
            tries = ray.remote(num_cpus=0)(RayTries).remote()
            rows = ray.data.from_items([{"item": n} for n in range(len(inputs))], override_num_blocks=len(inputs)).map(
                RayWorker,
                fn_constructor_args=(job, list(inputs), Path.cwd(), device, threads, tries),
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(inputs)), max_tasks_in_flight_per_actor=1),
                num_cpus=1,
                num_gpus=gpus,
            )
            for row in rows.iter_rows():
                item, error = inputs[row["item"]], row["error"]
                report(row["item"], Outcome(item.name, None if error else job.results.mask_file(item), error or None))
                require_not_cancelled(cancel)
        finally:
            context.enable_progress_bars = bars


@contextmanager
def ray_cluster(workers: int, *, use_gpus: bool = True) -> Iterator[tuple[int, int]]:
    """The Ray cluster at RAY_ADDRESS, or a new one on this machine that ends with the body.

    Yields:
        The processor threads and the GPUs for each worker.

    Raises:
        ConfigError: the extra is missing, or the cluster has no room for the workers.
    """
    try:
        import ray.data
    except ImportError:
        raise ConfigError("--cluster ray needs the extra: pip install 'sam2-3dmed[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        resources = ray.cluster_resources()
        gpus = 1 if use_gpus and "GPU" in resources else 0
        room = int(min(resources["CPU"], resources["GPU"]) if gpus else resources["CPU"])
        if room < workers:
            raise ConfigError(f"--workers {workers}: the Ray cluster has room for {room}")
        yield max(1, int(resources["CPU"]) // workers), gpus
    finally:
        if ours:
            ray.shutdown()


class RayTries:
    """One process that counts how often each input was begun and not ended, since Ray itself repeats without end.

    Ray also repeats an input that was ended, if its worker dies before Ray has the result.
    """

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count an input. Returns: how often it was begun since it last ended."""
        self._begun[number] += 1
        return self._begun[number]

    def end(self, number: int) -> None:
        del self._begun[number]


class RayWorker:
    """One process of the cluster.

    Args:
        folder: the working folder, from which relative paths count.
        tries: a handle of `RayTries`.
    """

    def __init__(
        self, job: Job, inputs: Sequence[Input], folder: Path, device: str | None, threads: int, tries: Any
    ) -> None:
        with suppress(OSError):  # if this machine does not have it, only absolute paths work
            os.chdir(folder)
        limit_threads(threads)
        self.job = job.on_another_host()
        self.inputs = inputs
        self.tries = tries
        self.error = ""
        try:
            self.segmenter = self.job.load(device=device)
        except UserError as error:  # every input fails with it; Ray would start the worker again and again
            self.error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the input whose number is in the row. Returns: the row with the reason of a failure, or ""."""
        import ray

        number = int(row["item"])
        item = self.inputs[number]
        if self.error:
            return {"item": number, "error": self.error}
        if ray.get(self.tries.begin.remote(number)) > _RAY_TRIES:
            return {"item": number, "error": f"{item.source}: worker processes died of it twice"}
        outcomes: list[Outcome] = []
        predict_each(self.segmenter, [(number, item)], self.job.results, lambda _, outcome: outcomes.append(outcome))
        ray.get(self.tries.end.remote(number))
        return {"item": number, "error": outcomes[0].error or ""}


def on_slurm(
    job: Job,
    inputs: Sequence[Input],
    report: Report,
    *,
    tasks: int,
    device: str | None,
    options: Mapping[str, Any],
    cancel: Event | None = None,
) -> None:
    """Run a job in tasks of a SLURM array through submitit, and wait for them.

    The tasks write to the same folder. They go on if this process ends; `cancel` ends them.

    Args:
        options: see `submit`.

    Raises:
        Cancelled: `cancel` was set. ConfigError: the extra is missing, there is no SLURM here, or an option is unknown.
    """
    numbers = [range(len(inputs))[first::tasks] for first in range(min(tasks, len(inputs)))]
    parts = [partial(_predict_part, job, [inputs[number] for number in own], device) for own in numbers]
    submitted = submit(parts, job.results.folder or Path(), options)
    waiting = set(range(len(inputs)))
    while not all(task.done() for task in submitted):
        numbered = sorted(waiting)
        for number, finished in zip(numbered, _finished(job, [inputs[n] for n in numbered]), strict=True):
            if finished:
                waiting.remove(number)
                report(number, Outcome(inputs[number].name, job.results.mask_file(inputs[number])))
        if cancel is not None and cancel.is_set():
            for task in submitted:
                task.cancel()
        require_not_cancelled(cancel)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for task, own in zip(submitted, numbers, strict=True):
        outcomes = _outcomes(task, [inputs[number] for number in own], job)
        for number, outcome in zip(own, outcomes, strict=True):
            if number in waiting:
                report(number, outcome)


def _predict_part(job: Job, inputs: Sequence[Input], device: str | None) -> list[Outcome]:
    """Predict the inputs of one task. What is finished is passed over, so the task can be started again."""
    return predict_batch(job.on_another_host(), inputs, device=device)


def _finished(job: Job, inputs: Sequence[Input]) -> list[bool]:
    return [False] * len(inputs) if job.results.manifest is None else job.results.manifest.finished(inputs)


def _outcomes(task: Task[list[Outcome]], inputs: Sequence[Input], job: Job) -> list[Outcome]:
    """The outcomes of a task that has ended; from the manifest if it failed."""
    try:
        return [replace(outcome, earlier=False) for outcome in task.result()]
    except Exception:  # it raised, or was killed
        reason = how_it_ended(task)
    return [
        Outcome(item.name, job.results.mask_file(item))
        if finished
        else Outcome(item.name, error=f"{item.source}: {reason}")
        for item, finished in zip(inputs, _finished(job, inputs), strict=True)
    ]
