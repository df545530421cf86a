"""A folder is for one process at a time, and a process that is gone, however it went, does not hold it."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.lock import LOCK_FILE, locked

HOLD = (
    "import sys, time; from pathlib import Path; from sam2_3dmed.processes.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(20)"
)


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_in_one_line(holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, locked(tmp_path / "run"):
        pytest.fail("held twice")
    assert str(caught.value).startswith(f"{tmp_path / 'run'}: process {holder.pid} on ")
    assert str(caught.value).endswith(" works in this folder; wait until it ends, or choose another folder")


def test_the_lock_of_a_killed_process_is_stale(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"process {holder.pid} ")
    with locked(tmp_path / "run"):
        pass


def test_workers_that_outlive_a_killed_process_hold_nothing(tmp_path: Path) -> None:
    """As the workers of a loader do for some seconds."""
    fork = HOLD.replace("print('held'", "import os; os.fork(); print('held'")
    process = subprocess.Popen([sys.executable, "-c", fork, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(10).count("held") == 2
    process.kill()
    process.wait()
    with locked(tmp_path / "run"):
        pass
    process.stdout.close()


def test_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(DataError), locked(tmp_path, 0.1):
            pytest.fail("held twice")
        held: list[float] = []

        def wait() -> None:
            with locked(tmp_path, 30):
                held.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        ended = time.monotonic()
    thread.join()
    assert held[0] >= ended
    assert list(tmp_path.iterdir()) == []


def test_many_take_turns(tmp_path: Path) -> None:
    """No two are ever in the body, though each removes the file."""
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path, 60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match="cannot be written"), locked(tmp_path / "run"):
        pytest.fail("held")
    assert (tmp_path / "other").read_text() == "precious"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300)):
        with pytest.raises(DataError, match="cannot be made"), locked(folder):
            pytest.fail("held")
