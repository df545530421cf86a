"""Tasks of a SLURM cluster, through submitit (extra `slurm`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sam2_3dmed.errors import ConfigError

if TYPE_CHECKING:
    from submitit import Job as Task

LOGS = "slurm"
"""The folder of the logs, below the output folder."""
SECONDS_BETWEEN_LOOKS = 2.0

Result = TypeVar("Result")


def submit(parts: Sequence[Callable[[], Result]], folder: Path, options: Mapping[str, Any]) -> list[Task[list[Result]]]:
    """A task for each part, in one array, with a list of the part's result.

    A task is queued again when its time is up or its machine is taken away. Its part begins anew, and must pass over
    what is done.

    Args:
        folder: below it are the logs.
        options: of submitit's AutoExecutor: `slurm_partition`, `timeout_min`, `gpus_per_node`, `mem_gb`, ...; `cluster`
            is `slurm`, or `local` to try it without a cluster.

    Raises: ConfigError if the extra is missing, there is no SLURM here, or an option is not known.
    """
    try:
        from submitit import AutoExecutor
        from submitit.helpers import FunctionSequence
    except ImportError:
        raise ConfigError("--cluster slurm needs the extra: pip install 'sam2-3dmed[slurm]'") from None
    parameters = {"cluster": "slurm", "name": "sam2-3dmed", **options}
    try:
        executor = AutoExecutor(folder=folder / LOGS, cluster=parameters.pop("cluster"))
        executor.update_parameters(**parameters)
        sequences = [FunctionSequence() for _ in parts]  # submitit requeues these, but not plain functions
        for sequence, part in zip(sequences, parts, strict=True):
            sequence.add(part)
        submitted: list[Task[list[Result]]] = executor.submit_array(sequences)
    except Exception as error:  # submitit raises NameError, RuntimeError, and its own errors
        raise ConfigError(f"--cluster slurm: {' '.join(str(error).split())[:500]}") from None
    return submitted


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options from KEY=VALUE texts, else a ConfigError; whole numbers become int."""
    options: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not (key and value):
            raise ConfigError(f"--slurm {text}: expected KEY=VALUE, such as slurm_partition=gpu")
        options[key] = int(value) if value.isdigit() else value
    return options


def how_it_ended(task: Task[Any]) -> str:
    """Why a task has no result: it raised an error, or was killed."""
    return f"task {task.job_id} ended as {task.state} ({task.paths.stderr}); the same command does what is missing"
