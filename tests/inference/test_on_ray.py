"""A job on a Ray cluster of two workers on this machine: one is killed in mid-run, and nothing is lost."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.batch import Job, predict_batch
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.workers import on_ray
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

# Ray's own; ours stay errors.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


def two_workers(*given):
    on_ray(*given, workers=2, device="cpu")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_a_worker_that_is_killed_in_mid_run_loses_nothing(
    cluster, blobs, blob_run, make_job, first_worker_killed, tmp_path
):
    inputs = find_inputs([blobs / "imagesTr"], 1)[:8]
    job = make_job(blob_run, tmp_path / "out")
    with first_worker_killed(job) as killed:
        outcomes = predict_batch(job, inputs, two_workers)
    ((_, noted),) = killed
    assert noted < len(inputs), "killed too late to be in mid-run"
    assert [outcome.error for outcome in outcomes] == [None] * len(inputs)
    assert {line["name"] for line in job.manifest.lines()} == {item.name for item in inputs}
    here = make_job(blob_run, tmp_path / "here")
    for ours, theirs in zip(predict_batch(here, inputs), outcomes, strict=True):
        assert np.array_equal(read_label(ours.output).array, read_label(theirs.output).array)
    assert all(outcome.earlier for outcome in predict_batch(job, inputs, two_workers))


def load_deadly(device):
    """In place of a model: a threshold that kills its process at a volume of nines."""

    def segmenter(volume, **_):
        if (volume.array == 9).all():
            os.kill(os.getpid(), signal.SIGKILL)
        return volume.with_array((volume.array > 0).astype(np.uint8))

    return segmenter


@pytest.mark.long
def test_a_case_that_kills_twice_is_told_and_costs_only_itself(cluster, tmp_path, monkeypatch):
    """All paths are relative to a folder in which the cluster was not started."""
    monkeypatch.chdir(tmp_path)
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "in").mkdir()
    for number in (0, 9, 1, 2, 3):
        Volume(np.full((2, 2, 2), number, np.int16), np.eye(4)).write(tmp_path / "in" / f"c{number}.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no volume")
    inputs = find_inputs([Path("in")], 1)
    outcomes = predict_batch(Job(load_deadly, Path("out")), inputs, two_workers)
    errors = {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    assert set(errors) == {"broken", "c9"}
    assert "worker processes died of it twice" in errors["c9"]
    assert "broken.nii.gz" in errors["broken"]
    assert [read_label(o.output).array.max() for o in outcomes if o.output] == [0, 1, 1, 1]


def test_a_model_that_cannot_be_loaded_is_told(cluster, blobs, tmp_path, make_job):
    inputs = find_inputs([blobs / "imagesTr"], 1)[:1]
    (outcome,) = predict_batch(make_job(tmp_path / "no run", tmp_path / "out"), inputs, two_workers)
    assert "no run: not a run folder" in outcome.error


def test_more_workers_than_the_cluster_has_room_for(cluster, blobs, tmp_path, make_job):
    inputs = find_inputs([blobs / "imagesTr"], 1)
    with pytest.raises(ConfigError, match="--workers 3: the Ray cluster has room for 2"):
        predict_batch(
            make_job(tmp_path, tmp_path / "out"), inputs, lambda *given: on_ray(*given, workers=3, device="cpu")
        )


def test_without_the_extra(monkeypatch, blobs, tmp_path, make_job):
    monkeypatch.setitem(sys.modules, "ray", None)
    inputs = find_inputs([blobs / "imagesTr"], 1)
    with pytest.raises(ConfigError, match=r"pip install 'sam2-3dmed\[ray\]'"):
        predict_batch(make_job(tmp_path, tmp_path / "out"), inputs, two_workers)
