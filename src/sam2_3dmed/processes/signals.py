"""SIGTERM, with which schedulers end a job, as an exception with its own exit status.

Code that must finish something first, as training finishes a step, takes the signal itself for that time.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command with --resume goes on."""


class Terminated(BaseException):
    """SIGTERM came. The state from which the work can go on is on disk."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the body. Outside the main thread, which alone gets signals, it has no effect."""
    before = take_sigterm(_raise)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def take_sigterm(handle: Callable[[], None]) -> Callable[..., object] | int | None:
    """Call `handle` when SIGTERM comes. Returns: the handler before; None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda *_: handle()) or signal.SIG_DFL


def _raise() -> None:
    raise Terminated
