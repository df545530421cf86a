"""SIGTERM, with which schedulers end a job, as an exception with its own exit status.

Code that must finish something first, as training finishes a step, takes the signal itself for that time.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command with --resume goes on."""


class Terminated(BaseException):
    """SIGTERM came. The state from which the work can go on is on disk."""


@contextmanager
def on_sigterm(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` when SIGTERM comes in the body. Only the main thread gets signals; elsewhere it has no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: handle()) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raising_terminated() -> AbstractContextManager[None]:
    """SIGTERM raises `Terminated` in the body."""
    return on_sigterm(_raise)


def _raise() -> None:
    raise Terminated
