"""A function over all cases, in this process or in several. All broken cases are reported together."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.processes.worker_pool import Died, share_out


class HasFiles(Protocol):
    """A case with the size of its files."""

    @property
    def num_bytes(self) -> int:
        """In bytes."""


Progress = Callable[[int, int], None]
"""Called with the number of finished cases and of all cases, after each."""

Case = TypeVar("Case", bound=HasFiles)
Result = TypeVar("Result")

# Processes take a second or two to start, in which one reads about this much compressed image.
_WORTH_A_POOL_BYTES = 128 * 2**20
_MAX_WORKERS = 8


def map_cases(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    worth_a_pool_bytes: int = _WORTH_A_POOL_BYTES,
) -> list[Result]:
    """The results of `function`, in the order of `cases`.

    Args:
        function: can be pickled: a function at the top level of a module, or a `functools.partial` of one.
        workers: the number of processes; 0: this one only; None: this one only for a small data set, else one for each
            processor, at most 8.
        worth_a_pool_bytes: a data set whose files have fewer bytes is small.

    Raises: DataError with a line for each case for which `function` raised a UserError, or of which processes died.
    Other exceptions of `function` end the work at once.
    """
    count = min(_choose_workers(cases, worth_a_pool_bytes) if workers is None else workers, len(cases))
    results: dict[int, Result] = {}
    failures: dict[int, str] = {}
    here = ((index, _attempt(function, case)) for index, case in enumerate(cases))
    outcomes = share_out(partial(_map, function), cases, [None] * count) if count > 0 else here
    for done, (index, outcome) in enumerate(outcomes, start=1):
        if isinstance(outcome, UserError):
            failures[index] = str(outcome)
        elif isinstance(outcome, Died):
            failures[index] = f"case {index + 1} of {len(cases)}: {outcome.reason}; workers=0 does without them"
        else:
            results[index] = outcome
        if progress is not None:
            progress(done, len(cases))
    if failures:
        title = [f"{len(failures)} of {len(cases)} cases cannot be used:"] if len(failures) > 1 else []
        raise DataError("\n".join([*title, *(failures[index] for index in sorted(failures))]))
    return [results[index] for index in range(len(cases))]


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar on standard error with the time left. It yields the callback that moves the bar.

    A bar that was never moved vanishes, so that it does not stand before the message of a request that fails at once.
    """
    # The estimate is of the last hour. With rich's 30 seconds there is none for cases that take longer.
    with terminal_bar(speed_estimate_period=3600) as bar:
        task = bar.add_task(title, total=None)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            bar.update(task, visible=bar.tasks[0].total is not None)


def terminal_bar(**options: Any) -> Bar:
    """rich's bar on standard error: the text, the count, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=Console(stderr=True), **options)


def num_processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_workers(cases: Sequence[HasFiles], worth_a_pool_bytes: int) -> int:
    if sum(case.num_bytes for case in cases) < worth_a_pool_bytes:
        return 0
    processors = num_processors()
    return min(processors, _MAX_WORKERS) if processors > 1 else 0


def _attempt(function: Callable[[Case], Result], case: Case) -> Result | UserError:
    try:
        return function(case)
    except UserError as error:
        return error


def _map(
    function: Callable[[Case], Result],
    _: None,
    cases: Iterator[tuple[int, Case]],
    report: Callable[[int, Result | UserError], None],
) -> None:
    """The work of a process; see `worker_pool.Work`."""
    for index, case in cases:
        report(index, _attempt(function, case))
