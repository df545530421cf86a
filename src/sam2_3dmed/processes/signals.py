"""SIGTERM, with which schedulers end a job, as an exception with its own exit status. Ctrl-C that is never lost.

Code that must finish something first, as training finishes a step, takes SIGTERM itself for that time.
"""

import os
import signal
import sys
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


@contextmanager
def never_lost() -> Iterator[None]:
    """Send a signal again whose exception Python has dropped in the body.

    A handler runs between any two instructions. Python drops what it raises within `__del__` or a callback of a weak
    reference, and says so on standard error.
    """
    before = sys.unraisablehook

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        number = _SIGNALS.get(dropped.exc_type)
        if number is None:
            before(dropped)
            return
        timer = threading.Timer(_SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """A process that the body starts never gets Ctrl-C, from its first instruction on.

    Here Ctrl-C waits until the body ends, unless another thread takes it. It has no effect where the system cannot
    block signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise() -> None:
    raise Terminated


_SIGNALS: dict[type[BaseException], signal.Signals] = {
    KeyboardInterrupt: signal.SIGINT,
    Terminated: signal.SIGTERM,
}
_SECONDS_UNTIL_AGAIN = 0.01
