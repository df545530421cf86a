"""SIGTERM, with which schedulers announce that a job ends: an exception with an exit status of its own.

Whoever must finish something first, as training does with a step, takes the signal itself for that time.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command with --resume goes on."""


class Terminated(BaseException):
    """SIGTERM came, and what can be gone on from is on disk."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the body; of no effect outside the main thread, where signals cannot be taken."""
    before = take_sigterm(_raise)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def take_sigterm(handle: Callable[[], None]) -> Callable[..., object] | int | None:
    """Have `handle` called when SIGTERM comes. Returns: what was there before, None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda *_: handle()) or signal.SIG_DFL


def _raise() -> None:
    raise Terminated
