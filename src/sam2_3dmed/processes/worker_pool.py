"""Worker processes that get cases one by one. Only a case that kills two processes is lost.

concurrent.futures and loky end the whole pool when one process dies. pebble (LGPL) replaces the process, but it has one
initializer for all processes, and calls a function for each case, so that no process can read its next case meanwhile.
"""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from threading import Event, Lock
from typing import Any, TypeVar

from sam2_3dmed.errors import Cancelled, DataError
from sam2_3dmed.processes.signals import interrupts_wait

logger = logging.getLogger(__name__)

Case = TypeVar("Case")
Result = TypeVar("Result")

Work = Callable[[Any, Iterator[tuple[int, Case]], Callable[[int, Result], None]], None]
"""The function that a process runs: `work(place, cases, report)`.

`cases` gives numbered cases as they are handed out. `report` takes the number and the result of a case, in any thread.
It must report the cases that it has before it asks for a third one.
"""

_HANDED_OUT = 2  # cases that a process has at once: enough to keep it busy, few enough for the memory
_SECONDS_TO_LEAVE = 10
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Died:
    """Takes the place of the result of a case that killed two processes."""

    reason: str


def share_out(
    work: Work[Case, Result],
    cases: Sequence[Case],
    places: Sequence[Any],
    preload: Sequence[str] = (),
    cancel: Event | None = None,
) -> Iterator[tuple[int, Result | Died]]:
    """Share cases out among processes, and yield the numbered results as they come.

    A process that dies is replaced. Each of its cases is tried once more, alone in a process, so that a case that kills
    costs no other; if a process dies of it again, its result is `Died`.

    Args:
        work: can be pickled; see `Work`.
        places: the first argument of `work` in each process, such as its GPU.
        preload: modules that are imported once for all processes where the system can; they must start no threads.
        cancel: set it from another thread to end the processes.

    Raises: Cancelled if `cancel` was set; DataError if every process died before its first case. An error of `work`
    ends all processes and is raised here.
    """
    fresh = deque(enumerate(cases))
    suspects: deque[tuple[int, Any]] = deque()  # cases that a process may have died of
    left = len(cases)
    context = _context(preload)
    workers = [_Worker(context, work, place) for place in places[:left]]
    try:
        while left:
            for worker in workers:
                worker.take(fresh, suspects)
            for worker in _with_news(workers, cancel):
                results = worker.receive()
                if results is None:
                    workers.remove(worker)
                    results = worker.give_back(fresh, suspects)
                    if worker.ready and left > len(results):
                        workers.append(_Worker(context, work, worker.place))
                yield from results
                left -= len(results)
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.dismiss(at_once=left > 0)


class _Worker:
    """A process and its cases."""

    def __init__(self, context: ForkServerContext | SpawnContext, work: Work[Any, Any], place: Any) -> None:
        self.place = place
        self.ready = False  # whether it has asked for its first case
        self._cases: dict[int, Any] = {}
        self._alone = False  # whether its only case is a suspect
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, place, theirs), daemon=True)
        with interrupts_wait():  # Ctrl-C reaches the process that started it, which ends this one
            self._process.start()
        theirs.close()  # so that the death of the process ends the connection

    def take(self, fresh: deque[tuple[int, Any]], suspects: deque[tuple[int, Any]]) -> None:
        """Take a suspect alone, or else as many fresh cases as a process may have; suspects go first."""
        taken = []
        if suspects:
            if not self._cases:
                taken, self._alone = [suspects.popleft()], True
        elif not self._alone:
            taken = [fresh.popleft() for _ in range(min(len(fresh), _HANDED_OUT - len(self._cases)))]
        for index, case in taken:
            self._cases[index] = case
            with suppress(OSError):  # the process is dead; `receive` raises
                self.connection.send((index, case))

    def receive(self) -> list[tuple[int, Any]] | None:
        """The number and the result of a case, or nothing when the process asks for its first case; None if it died.

        An error of its work is raised as it is.
        """
        try:
            index, result = self.connection.recv()
        except (EOFError, OSError):
            return None
        if index is None and isinstance(result, Exception):
            raise result
        self.ready = True
        if index is None:
            return []
        del self._cases[index]
        self._alone = False
        return [(index, result)]

    def give_back(self, fresh: deque[tuple[int, Any]], suspects: deque[tuple[int, Any]]) -> list[tuple[int, Died]]:
        """Give the cases of a dead process back. Returns: the case that has now killed two processes, if any."""
        self._process.join()
        self.connection.close()
        ended = f"a worker process ended with status {self._process.exitcode} (-9: killed, perhaps for its memory)"
        if not self.ready:
            logger.warning("%s as it started; the others go on without it", ended)
            (suspects if self._alone else fresh).extendleft(reversed(self._cases.items()))
        elif self._alone:
            return [(index, Died(f"worker processes died of it twice: {ended}")) for index in self._cases]
        else:
            logger.warning("%s; its cases are tried again", ended)
            suspects.extend(self._cases.items())
        return []

    def dismiss(self, *, at_once: bool) -> None:
        """End the process, whose connection is closed: when it finds that there are no more cases, or at once."""
        if not at_once:
            self._process.join(_SECONDS_TO_LEAVE)
        self._process.kill()
        self._process.join()


def _with_news(workers: Sequence[_Worker], cancel: Event | None) -> list[_Worker]:
    """Wait for workers that have sent something, or have died."""
    if not workers:
        raise DataError(
            "all worker processes died as they started: out of memory, or a script whose calls are not below "
            'if __name__ == "__main__"'
        )
    if cancel is not None and cancel.is_set():
        raise Cancelled("the work was cancelled")
    timeout = None if cancel is None else _SECONDS_BETWEEN_LOOKS
    ready = wait([worker.connection for worker in workers], timeout)
    return [worker for worker in workers if worker.connection in ready]


def _context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    # Not "fork": a copy of a process that holds torch's threads can hang.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # its start would end `interrupts_wait`
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))  # of no effect once the server runs
    return context


def _serve(work: Work[Any, Any], place: Any, connection: Connection) -> None:
    """Run in the process: work until there are no more cases, or the process that started this one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems that cannot block signals
    sending = Lock()

    def send(index: int | None, content: Any) -> None:
        with sending, suppress(BrokenPipeError):
            connection.send((index, content))

    def cases() -> Iterator[tuple[int, Any]]:
        send(None, None)
        while True:
            try:
                yield connection.recv()
            except (EOFError, ConnectionResetError):
                return

    try:
        work(place, cases(), send)
    except Exception as error:
        try:
            send(None, error)
        except Exception:  # an exception that cannot be pickled
            send(None, RuntimeError(f"{type(error).__name__}: {error}"))
