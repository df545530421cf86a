"""A function over all cases, in this process or in several, with every broken case reported at once."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

from sam2_3dmed.errors import DataError, UserError


class HasFiles(Protocol):
    """A case: it knows how much there is to read."""

    @property
    def num_bytes(self) -> int:
        """The size of its files."""


Progress = Callable[[int, int], None]
"""Called with the number of finished cases and of all cases, after each."""

Case = TypeVar("Case", bound=HasFiles)
Result = TypeVar("Result")

# Processes take a second or two to start, in which one reads about this much compressed image.
_WORTH_A_POOL_BYTES = 128 * 2**20
_MAX_WORKERS = 8
_WAITING_PER_WORKER = 2  # cases handed out ahead: enough to keep it busy, and memory does not grow with their number


def map_cases(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    worth_a_pool_bytes: int = _WORTH_A_POOL_BYTES,
) -> list[Result]:
    """The results of `function`, in the order of `cases`.

    function: can be pickled: a function at a module's top level, or a `functools.partial` of one.
    workers: processes; 0: none but this one; None: none for a small data set, else one per processor, at most 8.
    worth_a_pool_bytes: a data set with less than this in its files is small.

    Raises:
        DataError: `function` raised a UserError for some cases; the message lists all of them, one a line.
        Other exceptions of `function` end the work at once.
    """
    count = min(_choose_workers(cases, worth_a_pool_bytes) if workers is None else workers, len(cases))
    results: dict[int, Result] = {}
    failures: dict[int, str] = {}
    outcomes = _in_processes(function, cases, count) if count > 0 else _in_process(function, cases)
    for done, (index, outcome) in enumerate(outcomes, start=1):
        if isinstance(outcome, UserError):
            failures[index] = str(outcome)
        else:
            results[index] = outcome
        if progress is not None:
            progress(done, len(cases))
    if len(failures) == 1:
        raise DataError(next(iter(failures.values())))
    if failures:
        lines = [
            f"{len(failures)} of {len(cases)} cases cannot be used:",
            *(m for _, m in sorted(failures.items())),
        ]
        raise DataError("\n".join(lines))
    return [results[index] for index in range(len(cases))]


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on standard error, fed by the callback it yields."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _choose_workers(cases: Sequence[HasFiles], worth_a_pool_bytes: int) -> int:
    if sum(case.num_bytes for case in cases) < worth_a_pool_bytes:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, _MAX_WORKERS) if processors > 1 else 0


def _attempt(function: Callable[[Case], Result], case: Case) -> Result | UserError:
    try:
        return function(case)
    except UserError as error:
        return error


def _in_process(function: Callable[[Case], Result], cases: Sequence[Case]) -> Iterator[tuple[int, Result | UserError]]:
    for index, case in enumerate(cases):
        yield index, _attempt(function, case)


def _in_processes(
    function: Callable[[Case], Result], cases: Sequence[Case], workers: int
) -> Iterator[tuple[int, Result | UserError]]:
    # Not "fork": a copy of a process that holds torch's threads can hang.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))
    try:
        waiting: dict[Future[Result | UserError], int] = {}
        numbered = iter(enumerate(cases))
        while True:
            for index, case in islice(numbered, _WAITING_PER_WORKER * workers - len(waiting)):
                waiting[executor.submit(_attempt, function, case)] = index
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} worker processes died: out of memory, or a script whose calls are not below "
            'if __name__ == "__main__"; workers=0 does without them'
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)
