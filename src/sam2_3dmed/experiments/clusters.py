"""Runs of a table as jobs: on this machine one after the other, on a Ray cluster, or as tasks of SLURM.

All machines see the same folders of data and of runs. A run that is not carried out to its end is told as a failure,
and the next call goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.experiments.planning import Run
from sam2_3dmed.experiments.run_executor import Place, carry_out, note_failure
from sam2_3dmed.inference.on_ray import NEEDS_THE_EXTRA
from sam2_3dmed.inference.workers import limit_threads
from sam2_3dmed.processes.slurm import SECONDS_BETWEEN_LOOKS, how_it_ended, submit

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

Ended = Callable[[Run], None]
"""Called with each run whose job has ended, well or not."""


def one_by_one(runs: Sequence[Run], out: Path, ended: Ended) -> None:
    """In this process.

    Raises: Terminated, KeyboardInterrupt: stopped.
    """
    for run in runs:
        carry_out(run, out)
        ended(run)


@dataclass(frozen=True)
class Part:
    """A run as a task, which can be started again."""

    run: Run
    out: Path
    threads: int | None = None

    def __call__(self) -> None:
        """Carry it out from where it is."""
        if self.threads is not None:
            limit_threads(self.threads)
        carry_out(self.run, self.out)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit as the task's time is up, or its machine is taken away: queue it again."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def on_slurm(runs: Sequence[Run], out: Path, ended: Ended, *, options: Mapping[str, Any]) -> None:
    """A task for each run; waits for them, and to stop waiting does not stop them. options: see `slurm.submit`.

    Raises:
        ConfigError: the extra is missing, there is no SLURM here, or an option is not known.
    """
    out = out.resolve()
    waiting = dict(zip(submit([Part(run, out) for run in runs], out, options), runs, strict=True))
    while waiting:
        for task in [task for task in waiting if task.done()]:
            run = waiting.pop(task)
            if task.exception() is not None:
                _told(run, out, how_it_ended(task))
            ended(run)
        if waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def on_ray(runs: Sequence[Run], out: Path, ended: Ended, *, workers: int) -> None:
    """So many runs at a time on the Ray cluster that RAY_ADDRESS names, or on one of this machine; a GPU for each, if
    there are any.

    Raises:
        ConfigError: the extra is missing, or the cluster has no room for as many.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(NEEDS_THE_EXTRA) from None
    out = out.resolve()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        resources = ray.cluster_resources()
        gpus = 1 if "GPU" in resources else 0
        room = int(min(resources["CPU"], resources["GPU"]) if gpus else resources["CPU"])
        if room < workers:
            raise ConfigError(f"--workers {workers}: the Ray cluster has room for {room}")
        threads = max(1, int(resources["CPU"]) // workers)
        job = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(Part.__call__)
        waiting = {job.remote(Part(run, out, threads)): run for run in runs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(done)
            try:
                ray.get(done)
            except Exception as error:  # Ray's own, of a process that died, or whatever the run raised
                _told(run, out, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
            ended(run)
    finally:
        if ours:
            ray.shutdown()


def _told(run: Run, out: Path, reason: str) -> None:
    place = Place.of(run, out)
    if place.state != "done":
        note_failure(place, reason)
