"""SIGTERM becomes an exception, and what was there before comes back."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sam2_3dmed.processes.signals import Terminated, interrupts_wait, never_lost, on_sigterm, raising_terminated


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


class _Ends:
    """Sends the signal to its own process when it is deleted, where Python drops exceptions."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def _delete(number: signal.Signals) -> None:
    ends = _Ends(number)
    del ends
    time.sleep(10)


def test_ctrl_c_within_a_destructor_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with never_lost(), pytest.raises(KeyboardInterrupt):
        _delete(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_sigterm_within_a_destructor_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with never_lost(), raising_terminated(), pytest.raises(Terminated):
        _delete(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_other_dropped_exceptions_are_reported_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "from sam2_3dmed.processes.signals import never_lost\n"
        "class Broken:\n"
        "    def __del__(self): raise ValueError('in a destructor')\n"
        "with never_lost(): Broken()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ValueError: in a destructor" in found.stderr


def test_ctrl_c_waits_and_a_started_process_never_gets_it() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('went on')"
    outputs: list[str] = []

    def body() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            outputs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)

    with pytest.raises(KeyboardInterrupt):
        body()
    assert outputs == ["went on\n"]
