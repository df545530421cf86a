"""SIGTERM becomes an exception, and what was there before comes back."""

import os
import signal
import threading

import pytest

from sam2_3dmed.processes.signals import Terminated, on_sigterm, raising_terminated


def test_sigterm_raises_in_the_body_and_not_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_terminated():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_whoever_takes_it_decides() -> None:
    came: list[bool] = []
    with raising_terminated(), on_sigterm(lambda: came.append(True)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert came == [True]


def test_an_exception_handler_does_not_swallow_it() -> None:
    assert not issubclass(Terminated, Exception)


def test_another_thread_takes_no_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def body() -> None:
        with raising_terminated():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == [before]
