"""A batch in other processes: of this machine, of a Ray cluster, or of a SLURM cluster."""

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

from sam2_3dmed.errors import ConfigError, UserError
from sam2_3dmed.inference.batch import Job, Outcome, Report, predict_batch, predict_each
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import require_not_cancelled
from sam2_3dmed.processes.map_cases import num_processors
from sam2_3dmed.processes.slurm import SECONDS_BETWEEN_LOOKS, how_it_ended, submit
from sam2_3dmed.processes.worker_pool import Died, share_out

# These take seconds to import. The second is imported when a network is built.
_PRELOAD = ("sam2_3dmed.inference.predictor", "transformers.models.sam2.modeling_sam2")


def assign_devices(device: str | None, workers: int | None) -> list[str | None]:
    """The device of each worker process: they take devices (with commas between them) in turn, by default one each."""
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
    """Run a job in one process for each device. A process that dies costs only the input that kills two processes."""
    threads = max(1, num_processors() // len(devices))
    for index, outcome in share_out(partial(_work, job, threads), inputs, devices, _PRELOAD, cancel):
        if isinstance(outcome, Died):
            item = inputs[index]
            outcome = Outcome(item.name, error=f"{item.source}: {outcome.reason}")
        report(index, outcome)


def _work(job: Job, threads: int, device: str | None, inputs: Iterator[tuple[int, Input]], report: Report) -> None:
    limit_threads(threads)
    predict_each(job.load(device=device), inputs, job, report)


def on_ray(
    job: Job, inputs: Sequence[Input], report: Report, *, workers: int, device: str | None, cancel: Event | None = None
) -> None:
    """Run a job in actors of a Ray cluster, see `ray_cluster`. Each gets one input at a time.

    If an actor dies, Ray starts it again and tries its input once more. An input that kills two is reported as failed.
    """
    with ray_cluster(workers, use_gpus=device != "cpu") as (threads, gpus):
        import ray

        kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=1)(RayWorker)
        idle = [kind.remote(job, Path.cwd(), device, threads) for _ in range(min(workers, len(inputs)))]
        waiting = deque(range(len(inputs)))
        working: dict[Any, tuple[Any, int]] = {}
        while waiting or working:
            while waiting and idle:
                actor, number = idle.pop(), waiting.popleft()
                working[actor.predict.remote(inputs[number])] = actor, number
            (done,), _ = ray.wait(list(working), num_returns=1)
            actor, number = working.pop(done)
            item = inputs[number]
            try:
                error = ray.get(done)
            except ray.exceptions.RayActorError:
                error = f"{item.source}: worker processes died of it twice"
            idle.append(actor)
            report(number, Outcome(item.name, None if error else job.mask_file(item), error))
            require_not_cancelled(cancel)


@contextmanager
def ray_cluster(workers: int, *, use_gpus: bool = True) -> Iterator[tuple[int, int]]:
    """The threads and GPUs of a worker on the Ray cluster at RAY_ADDRESS, or on a new one that ends with the body.

    Raises ConfigError without the extra, or if the cluster has no room for the workers.
    """
    try:
        import ray
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


class RayWorker:
    """An actor. Its first input loads the model, so that a model that kills the process is not loaded for ever."""

    def __init__(self, job: Job, folder: Path, device: str | None, threads: int) -> None:
        with suppress(OSError):  # if this machine does not have it, only absolute paths work
            os.chdir(folder)
        limit_threads(threads)
        self._job = job
        self._load = cache(partial(job.load, device=device))

    def predict(self, item: Input) -> str | None:
        """Predict an input. Returns: the reason of a failure."""
        outcomes: list[Outcome] = []
        try:
            predict_each(self._load(), [(0, item)], self._job, lambda _, outcome: outcomes.append(outcome))
        except UserError as error:  # the model cannot be loaded
            return str(error)
        return outcomes[0].error


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
    """Run a job that has a manifest in tasks of a SLURM array, see `submit`, and wait for them.

    The tasks write to the same folder. They go on if this process ends; `cancel` ends them. A task passes over what is
    finished, so it can be started again.
    """
    shares = [range(len(inputs))[first::tasks] for first in range(min(tasks, len(inputs)))]
    parts = [partial(predict_batch, job, [inputs[n] for n in share], device=device) for share in shares]
    submitted = submit(parts, job.folder or Path(), options)
    waiting = dict(enumerate(inputs))
    while not all(task.done() for task in submitted):
        _report_finished(job, waiting, report)
        if cancel is not None and cancel.is_set():
            for task in submitted:
                task.cancel()
        require_not_cancelled(cancel)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _report_finished(job, waiting, report)
    for task, share in zip(submitted, shares, strict=True):
        try:
            (outcomes,) = task.result()
        except Exception:  # it raised, or was killed
            reason = how_it_ended(task)
            outcomes = [Outcome(inputs[n].name, error=f"{inputs[n].source}: {reason}") for n in share]
        for number, outcome in zip(share, outcomes, strict=True):
            if number in waiting:
                report(number, outcome)


def _report_finished(job: Job, waiting: dict[int, Input], report: Report) -> None:
    """Take from the waiting inputs those that the manifest has, and report them."""
    assert job.manifest is not None
    for number, finished in zip(list(waiting), job.manifest.finished(list(waiting.values())), strict=True):
        if finished:
            item = waiting.pop(number)
            report(number, Outcome(item.name, job.mask_file(item)))
