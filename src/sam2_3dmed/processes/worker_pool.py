"""Processes that are handed cases one by one, and may die: none but the case that kills is lost."""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from threading import Lock
from typing import Any, TypeVar

from sam2_3dmed.errors import DataError

logger = logging.getLogger(__name__)

Case = TypeVar("Case")
Result = TypeVar("Result")

Work = Callable[[Any, Iterator[tuple[int, Case]], Callable[[int, Result], None]], None]
"""What a process does: called with its place, the numbered cases as they are handed to it, and `report`, which takes a
case's number and result, from any thread. It must not wait for a case before it has reported those it has."""

_HANDED_OUT = 2  # cases a process has at once: enough to keep it busy, and memory does not grow with their number
_SECONDS_TO_LEAVE = 10


@dataclass(frozen=True)
class Died:
    """In place of the result of a case of which two processes died."""

    reason: str


def share_out(
    work: Work[Case, Result], cases: Sequence[Case], places: Sequence[Any], preload: Sequence[str] = ()
) -> Iterator[tuple[int, Result | Died]]:
    """The results, numbered, as they come from one process a place; each process gets cases as it works them off.

    work: can be pickled; see `Work`. places: what tells the processes apart, such as a GPU each. preload: modules that
    are imported once for all of them, where the system can; they must start no threads.

    A process that dies is replaced, and what it had in hand is tried once more, each case alone in a process, so that
    the case that kills costs no other; if a process dies of it again, its result is `Died`.

    Raises:
        DataError: every process died before its first case. What `work` raises ends all work at once.
    """
    hand = _Hand(deque(enumerate(cases)), deque())
    left = len(cases)
    context = _context(preload)
    crew = [_Worker(context, work, place) for place in places[:left]]
    try:
        while left:
            for worker in crew:
                worker.take(hand)
            ready = wait([worker.connection for worker in crew])
            for worker in [worker for worker in crew if worker.connection in ready]:
                try:
                    index, result = worker.receive()
                except _Gone:
                    crew.remove(worker)
                    lost = worker.requeue(hand)
                    yield from lost
                    left -= len(lost)
                    if worker.ready and left:
                        crew.append(_Worker(context, work, worker.place))
                    continue
                if index is not None:
                    yield index, result
                    left -= 1
            if left and not crew:
                raise DataError(
                    f"all of {len(places)} worker processes died as they started: out of memory, or a script whose "
                    'calls are not below if __name__ == "__main__"'
                )
    finally:
        for worker in crew:
            worker.connection.close()
        for worker in crew:
            worker.dismiss(at_once=left > 0)


@dataclass
class _Hand:
    """The numbered cases that no process has: those not tried yet, and those of which a process may have died."""

    fresh: deque[tuple[int, Any]]
    suspects: deque[tuple[int, Any]]


class _Gone(Exception):  # noqa: N818
    """A process is no longer there."""


class _Worker:
    """A process and what it has in hand."""

    def __init__(self, context: ForkServerContext | SpawnContext, work: Work[Any, Any], place: Any) -> None:
        self.place = place
        self.ready = False  # whether it has asked for its first case
        self._cases: dict[int, Any] = {}
        self._alone = False  # whether its one case is a suspect
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, place, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends the connection

    def take(self, hand: _Hand) -> None:
        """Take a suspect alone, or else as many cases as it should have; suspects go first."""
        if hand.suspects or self._alone:
            if hand.suspects and not self._cases:
                self._alone = True
                self._give(*hand.suspects.popleft())
            return
        while hand.fresh and len(self._cases) < _HANDED_OUT:
            self._give(*hand.fresh.popleft())

    def _give(self, index: int, case: Any) -> None:
        self._cases[index] = case
        with suppress(OSError):  # it is dead; `receive` will tell
            self.connection.send((index, case))

    def receive(self) -> tuple[int | None, Any]:
        """A case's number and result; no number for the word that it is ready.

        Raises:
            _Gone: it died. Whatever its work raised.
        """
        try:
            index, result = self.connection.recv()
        except (EOFError, OSError):
            raise _Gone from None
        if index is None and isinstance(result, Exception):
            raise result
        self.ready = True
        if index is not None:
            del self._cases[index]
            self._alone = False
        return index, result

    def requeue(self, hand: _Hand) -> list[tuple[int, Died]]:
        """Give back what a dead process had in hand; returns what has now killed twice."""
        self._process.join()
        self.connection.close()
        ended = f"a worker process ended with status {self._process.exitcode} (-9: killed, perhaps for its memory)"
        if not self.ready:
            logger.warning("%s as it started; the others go on without it", ended)
            (hand.suspects if self._alone else hand.fresh).extendleft(reversed(self._cases.items()))
        elif self._alone:
            return [(index, Died(f"worker processes died of it twice: {ended}")) for index in self._cases]
        else:
            logger.warning("%s; what it had in hand is tried again", ended)
            hand.suspects.extend(self._cases.items())
        return []

    def dismiss(self, *, at_once: bool) -> None:
        """End the process, whose connection is closed: as it finds that there are no more cases, or at once."""
        if not at_once:
            self._process.join(_SECONDS_TO_LEAVE)
        self._process.kill()
        self._process.join()


def _context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    # Not "fork": a copy of a process that holds torch's threads can hang.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))  # of no effect once the server runs
    return context


def _serve(work: Work[Any, Any], place: Any, connection: Connection) -> None:
    """The life of a process: it works until there are no more cases, or whoever started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that started it, which ends this one
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
