"""A job on a SLURM cluster, through submitit: the inputs are dealt out to tasks that write to the same folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sam2_3dmed.inference.batch import Outcome
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.job import Job, Report, run_job
from sam2_3dmed.inference.workers import in_this_process
from sam2_3dmed.processes.slurm import SECONDS_BETWEEN_LOOKS, how_it_ended, submit

if TYPE_CHECKING:
    from submitit import Job as Task
    from submitit.core.utils import DelayedSubmission


@dataclass(frozen=True)
class Part:
    """What one task does. It passes over what is finished, so that it can be started again."""

    job: Job
    inputs: tuple[Input, ...]
    device: str | None

    def __call__(self) -> list[Outcome]:
        """Predict what is missing of this part."""
        return run_job(self.job.on_another_host(), self.inputs, partial(in_this_process, device=self.device))

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit as the task's time is up, or its machine is taken away: queue it again."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def on_slurm(
    job: Job, inputs: Sequence[Input], report: Report, *, tasks: int, device: str | None, options: Mapping[str, Any]
) -> None:
    """Do a job in that many tasks of an array, and wait for them; to stop waiting does not stop them.

    options: see `submit`.

    Raises:
        ConfigError: the extra is missing, there is no SLURM here, or an option is not known.
    """
    numbers = [range(len(inputs))[first::tasks] for first in range(min(tasks, len(inputs)))]
    parts = [Part(job, tuple(inputs[number] for number in own), device) for own in numbers]
    submitted = submit(parts, job.results.folder, options)
    waiting = set(range(len(inputs)))
    while not all(task.done() for task in submitted):
        waiting -= _report_finished(job, inputs, sorted(waiting), report)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for task, own in zip(submitted, numbers, strict=True):
        outcomes = _outcomes(task, [inputs[number] for number in own], job)
        for number, outcome in zip(own, outcomes, strict=True):
            if number in waiting:
                report(number, outcome)


def _report_finished(job: Job, inputs: Sequence[Input], waiting: Sequence[int], report: Report) -> set[int]:
    """Report what the manifest says is finished meanwhile."""
    if job.results.manifest is None:
        return set()
    finished = job.results.manifest.finished([inputs[number] for number in waiting])
    done = {number for number, whole in zip(waiting, finished, strict=True) if whole}
    for number in done:
        report(number, Outcome(inputs[number].name, job.results.mask_file(inputs[number]), None))
    return done


def _outcomes(task: Task[list[Outcome]], inputs: Sequence[Input], job: Job) -> list[Outcome]:
    """What a task that has ended returns; if it did not end well, what it has left behind."""
    try:
        return [replace(outcome, earlier=False) for outcome in task.result()]
    except Exception:  # it raised, or was killed
        reason = how_it_ended(task)
    return [
        Outcome(item.name, job.results.mask_file(item), None)
        if job.results.manifest is not None and job.results.manifest.finished([item])[0]
        else Outcome(item.name, None, f"{item.files[0]}: {reason}")
        for item in inputs
    ]
