"""A job through submitit's local executor: dealt out, killed, and finished by asking again."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.batch import predict_batch
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.workers import on_slurm
from sam2_3dmed.processes.slurm import LOGS
from sam2_3dmed.volume.label import read_label

LOCAL = {"cluster": "local", "timeout_min": 5}


def two_tasks(*given):
    on_slurm(*given, tasks=2, device="cpu", options=LOCAL)


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="needs the extra slurm")


@pytest.fixture
def inputs(blobs):
    return find_inputs([blobs / "imagesTr"], 1)[:8]


@pytest.mark.long
def test_a_task_that_is_killed_is_finished_by_asking_again(
    submitit, inputs, blob_run, make_job, first_worker_killed, tmp_path
):
    job, seen = make_job(blob_run, tmp_path / "out"), []
    with first_worker_killed(job):
        outcomes = predict_batch(job, inputs, two_tasks, progress=lambda *state: seen.append(state))
    failed = [outcome for outcome in outcomes if outcome.error]
    assert 0 < len(failed) < len(inputs) / 2, "all of the other task's, and the first of the killed one's, are done"
    assert all("the same command does what is missing" in outcome.error for outcome in failed)
    assert len({outcome.error.partition(": ")[2] for outcome in failed}) == 1
    assert seen == [(done, len(inputs)) for done in range(1, len(inputs) + 1)]

    again = predict_batch(job, inputs, lambda *given: on_slurm(*given, tasks=1, device="cpu", options=LOCAL))
    assert [outcome.error for outcome in again] == [None] * len(inputs)
    assert [outcome.name for outcome in again if not outcome.earlier] == [outcome.name for outcome in failed]
    here = make_job(blob_run, tmp_path / "here")
    for ours, theirs in zip(predict_batch(here, inputs), again, strict=True):
        assert np.array_equal(read_label(ours.output).array, read_label(theirs.output).array)
    assert (tmp_path / "out" / LOGS).is_dir()


@pytest.mark.long
def test_a_task_that_fails_names_its_log(submitit, inputs, tmp_path, make_job):
    outcomes = predict_batch(make_job(tmp_path / "no run", tmp_path / "out"), inputs[:1], two_tasks)
    for outcome in outcomes:
        log = Path(outcome.error.partition("(")[2].partition(")")[0])
        assert "no run: not a run folder" in log.read_text()


def test_without_the_extra(monkeypatch, inputs, tmp_path, make_job):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'sam2-3dmed\[slurm\]'"):
        predict_batch(make_job(tmp_path, tmp_path / "out"), inputs, two_tasks)
