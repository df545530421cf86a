"""A worker process: what it is given of the environment, its answers, its end and that of what it has started."""

import time
from pathlib import Path

import pytest

from sam2_3dmed.baselines.nnunet import environment
from sam2_3dmed.baselines.nnunet.environment import Worker
from sam2_3dmed.errors import ProcessError


@pytest.fixture
def start(standin, tmp_path, monkeypatch):
    """A worker that runs these lines, which have `say` and `told`."""

    def start_it(lines, told=None, **more):
        program = tmp_path / "program.py"
        head = ["import json, os, subprocess, sys, time", "told = json.loads(sys.stdin.readline())"]
        head.append("say = lambda **content: print(json.dumps(content), flush=True)")
        program.write_text("\n".join([*head, *lines]) + "\n")
        monkeypatch.setattr(environment, "_PROGRAM", program)
        return Worker("train", told or {}, tmp_path / "log.txt", **more)

    return start_it


def gone(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_lines_there_and_back(start):
    with start(
        ["say(got=told['x'], command=sys.argv[1])", "say(second=True, done=True)", "say(never=1)"], {"x": 3}
    ) as w:
        assert list(w.answers()) == [{"got": 3, "command": "train"}, {"second": True, "done": True}]


def test_its_folders_and_nothing_of_ours(start, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/somebody/elses")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    names = "('PYTHONPATH', 'nnUNet_raw', 'nnUNet_results', 'nnUNet_n_proc_DA')"
    lines = [f"say(**{{name: os.environ.get(name) for name in {names}}})"]
    with start(lines, folders={"nnUNet_results": tmp_path}) as worker:
        found = worker.answer()
    assert found["nnUNet_results"] == str(tmp_path)
    assert (found["PYTHONPATH"], found["nnUNet_raw"]) == (None, None)
    assert int(found["nnUNet_n_proc_DA"]) >= 1
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    with start(lines, device="cuda") as worker:
        assert worker.answer()["nnUNet_n_proc_DA"] is None, "on a GPU nnU-Net knows best"


def test_what_it_prints_is_in_the_log_and_its_last_line_in_the_error(start, tmp_path):
    with (
        start(["print('hello', file=sys.stderr)", "raise ValueError('no such thing')"]) as worker,
        pytest.raises(ProcessError, match=r"nnU-Net has ended: ValueError: no such thing \(status 1\).*log\.txt$"),
    ):
        worker.answer()
    assert "hello" in (tmp_path / "log.txt").read_text()


def test_an_end_without_a_word(start):
    with start(["os._exit(3)"]) as worker:
        worker.send({"more": "x" * 100_000})
        with pytest.raises(ProcessError, match=r"without output \(status 3\)"):
            worker.answer()


def test_what_it_calls_an_error(start):
    with start(["say(error='cannot be planned')"]) as worker, pytest.raises(ProcessError, match="cannot be planned"):
        worker.answer()


def test_it_ends_with_all_that_it_has_started(start):
    lines = ["child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"]
    lines += ["say(pids=[os.getpid(), child.pid])", "time.sleep(600)"]
    with start(lines) as worker:
        pids = worker.answer()["pids"]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert all(gone(pid) for pid in pids)


def test_one_that_will_not_end_is_killed(start, monkeypatch):
    monkeypatch.setattr(environment, "_SECONDS_TO_END", 0.5)
    lines = [
        "import signal",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "say(pid=os.getpid())",
        "time.sleep(600)",
    ]
    with start(lines) as worker:
        pid = worker.answer()["pid"]
    assert gone(pid)
