"""A job on a Ray cluster, through Ray Data: each worker loads the model once and gets a case at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sam2_3dmed.errors import ConfigError, UserError
from sam2_3dmed.inference.batch import Outcome, predict_each
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.job import Job, Report
from sam2_3dmed.inference.workers import limit_threads

NEEDS_THE_EXTRA = "--cluster ray needs the extra: pip install 'sam2-3dmed[ray]'"
_TRIES = 2


class Tries:
    """One process that counts how often each case was begun and not ended: Ray would repeat one that kills for ever.

    A worker may be killed by its next case before Ray has heard of the last one, which it then repeats, too.
    """

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often a case was begun, with this time."""
        self._begun[number] += 1
        return self._begun[number]

    def end(self, number: int) -> None:
        """A case has come to its end, and is to blame for nothing."""
        del self._begun[number]


class Worker:
    """One process of the cluster. folder: the working folder, from which relative paths count; tries: of `Tries`."""

    def __init__(
        self, job: Job, inputs: Sequence[Input], folder: Path, device: str | None, threads: int, tries: Any
    ) -> None:
        with suppress(OSError):  # not there on this machine: then only absolute paths are of use
            os.chdir(folder)
        limit_threads(threads)
        self.job = job.on_another_host()
        self.inputs = inputs
        self.tries = tries
        self.error = ""
        try:
            self.predictor = self.job.load(device)
        except UserError as error:  # told case by case; Ray would start the worker again and again
            self.error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the case whose number is in the row; adds why there is no mask, or nothing."""
        import ray

        number = int(row["item"])
        if not self.error and ray.get(self.tries.begin.remote(number)) > _TRIES:
            return {"item": number, "error": f"{self.inputs[number].files[0]}: worker processes died of it twice"}
        outcomes = [Outcome(self.inputs[number].name, None, self.error)]
        if not self.error:
            given = [(number, self.inputs[number])]
            predict_each(self.predictor, given, self.job.results, lambda _, outcome: outcomes.append(outcome))
            ray.get(self.tries.end.remote(number))
        return {"item": number, "error": outcomes[-1].error or ""}


def on_ray(job: Job, inputs: Sequence[Input], report: Report, *, workers: int, device: str | None) -> None:
    """Do a job in that many workers of the Ray cluster that RAY_ADDRESS names, or of one on this machine.

    A worker that dies is started again, and its case tried once more; one of which two die is reported as failed.

    Raises:
        ConfigError: the extra is missing, or the cluster has no room for the workers.
    """
    try:
        import ray.data
    except ImportError:
        raise ConfigError(NEEDS_THE_EXTRA) from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        resources = ray.cluster_resources()
        with_gpu = device != "cpu" and "GPU" in resources
        room = int(min(resources["CPU"], resources["GPU"]) if with_gpu else resources["CPU"])
        if room < workers:
            raise ConfigError(f"--workers {workers}: the Ray cluster has room for {room}")
        tries = ray.remote(num_cpus=0)(Tries).remote()
        threads = max(1, int(resources["CPU"]) // workers)
        rows = ray.data.from_items([{"item": n} for n in range(len(inputs))], override_num_blocks=len(inputs)).map(
            Worker,
            fn_constructor_args=(job, list(inputs), Path.cwd(), device, threads, tries),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(inputs)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if with_gpu else 0,
        )
        for row in rows.iter_rows():
            item, error = inputs[row["item"]], row["error"]
            report(row["item"], Outcome(item.name, None if error else job.results.mask_file(item), error or None))
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()
