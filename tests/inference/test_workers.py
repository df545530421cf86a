"""A batch in worker processes: the same masks from any number of processes, and none lost with a process."""

import threading
import time

import numpy as np
import pytest

from sam2_3dmed.errors import Cancelled, ConfigError, WeightsError
from sam2_3dmed.inference.batch import Job, predict_batch
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.workers import assign_devices, in_processes, limit_threads
from sam2_3dmed.volume.label import read_label


@pytest.mark.parametrize(
    ("device", "workers", "devices"),
    [
        (None, None, [None]),
        (None, 3, [None] * 3),
        ("cpu", 2, ["cpu", "cpu"]),
        ("cuda:0,cuda:1", None, ["cuda:0", "cuda:1"]),
        ("cuda:0, cuda:1", 4, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ("cuda:0,cuda:2,cuda:3", 3, ["cuda:0", "cuda:2", "cuda:3"]),
    ],
)
def test_a_device_a_worker(device, workers, devices):
    assert assign_devices(device, workers) == devices


def test_fewer_workers_than_devices():
    with pytest.raises(ConfigError, match="--workers 1: 2 devices need as many workers"):
        assign_devices("cuda:0,cuda:1", 1)


def test_threads_become_fewer_only():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        limit_threads(8)
        assert torch.get_num_threads() == 3
        limit_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def inputs(blobs):
    return find_inputs([blobs / "imagesTr"], 1)


@pytest.fixture(scope="module")
def expected(blobs, blob_run, tmp_path_factory, make_job):
    """Of each case, what one process predicts."""
    job = make_job(blob_run, tmp_path_factory.mktemp("here"))
    outcomes = predict_batch(job, find_inputs([blobs / "imagesTr"], 1))
    masks = {outcome.name: read_label(outcome.output).array for outcome in outcomes}
    assert any(len(np.unique(mask)) > 1 for mask in masks.values()), "all empty: nothing to compare"
    return masks


def check(outcomes, expected):
    assert [outcome.error for outcome in outcomes] == [None] * len(expected)
    for outcome in outcomes:
        assert np.array_equal(read_label(outcome.output).array, expected[outcome.name])


@pytest.mark.long
def test_a_worker_that_is_killed_in_mid_run_loses_nothing(
    inputs, blob_run, expected, make_job, worker_pids, first_worker_killed, tmp_path
):
    """Two workers on two devices; as the first case is noted, its worker is killed from outside."""
    job = make_job(blob_run, tmp_path / "out")
    with first_worker_killed(job) as killed:
        outcomes = predict_batch(job, inputs, lambda *given: in_processes(*given, devices=["cpu", "cpu:0"]))
    check(outcomes, expected)
    assert len(set(worker_pids(job)) - {pid for pid, _ in killed}) >= 1
    assert predict_batch(job, inputs, in_processes)[0].earlier


def test_a_model_that_cannot_be_loaded_is_one_error(inputs, tmp_path, make_job):
    job = make_job(tmp_path / "no run", tmp_path / "out")
    with pytest.raises(WeightsError, match="no run: not a run folder"):
        predict_batch(job, inputs, lambda *given: in_processes(*given, devices=["cpu"]))


def _wait_for_ever(device):
    def segmenter(volume, **_):
        time.sleep(600)

    return segmenter


def test_cancelled_from_another_thread(inputs, tmp_path):
    cancel = threading.Event()
    threading.Timer(3, cancel.set).start()
    with pytest.raises(Cancelled):
        predict_batch(
            Job(_wait_for_ever, tmp_path / "out"),
            inputs,
            lambda *given: in_processes(*given, devices=["cpu", "cpu"], cancel=cancel),
        )
    assert list((tmp_path / "out").iterdir()) == []
