"""What `--slurm` takes, and what submitit refuses."""

import sys

import pytest

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.processes.slurm import how_it_ended, parse_options, submit


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="needs the extra slurm")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "--cluster slurm: .*srun"),
        ({"cluster": "local", "partition": "gpu"}, "--cluster slurm: .*partition"),
        ({"cluster": "cloud"}, "--cluster slurm: .*cloud"),
    ],
)
def test_what_submitit_refuses_is_one_line(submitit, tmp_path, options, line, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no SLURM
    with pytest.raises(ConfigError, match=line) as refused:
        submit([dict], tmp_path, options)
    assert "\n" not in str(refused.value)


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'sam2-3dmed\[slurm\]'"):
        submit([dict], tmp_path, {})


@pytest.mark.long
def test_tasks_come_back_or_say_where_their_log_is(submitit, tmp_path):
    well, badly = submit([dict, _fail], tmp_path, {"cluster": "local", "timeout_min": 5})
    assert well.result() == [{}]
    task = submitit.core.utils.DelayedSubmission.load(well.paths.submitted_pickle)
    assert task._checkpoint_function().function is task.function, "it is queued again when its time is up"
    assert badly.exception() is not None
    assert "ValueError: no" in badly.paths.stderr.read_text()
    assert str(badly.paths.stderr) in how_it_ended(badly)


def _fail():
    raise ValueError("no")


def test_options_of_the_command_line():
    assert parse_options(["slurm_partition=gpu", "timeout_min=240", "slurm_comment=a=b"]) == {
        "slurm_partition": "gpu",
        "timeout_min": 240,
        "slurm_comment": "a=b",
    }
    assert parse_options([]) == {}


@pytest.mark.parametrize("text", ["gpu", "=3", "timeout_min="])
def test_options_of_another_form(text):
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_options([text])
