"""Limits of time and memory for one mutation."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SECONDS = 30
_BYTES = 2**30


class TooLongError(BaseException):
    """No `except Exception` of a reader may catch it."""


@pytest.fixture(scope="session")
def within_limits() -> Callable[[], object]:
    """In the body, no more than 30 seconds pass, and no more than 1 GiB of address space is taken."""
    return _within_limits


@contextmanager
def _within_limits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"more than {_SECONDS} seconds")

    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _BYTES, before[1]))
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
