"""A job: what is finished is passed over, and what any process needs to do a part of it can be pickled."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import DataError, WeightsError
from sam2_3dmed.inference.batch import Results, predict_each
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.job import Job, run_job
from sam2_3dmed.inference.manifest import Manifest, Provenance
from sam2_3dmed.volume.volume import Volume


def threshold(volume, probabilities=None, *, reference=None):
    """In place of a predictor."""
    return volume.with_array((volume.array > 0).astype(np.uint8))


class Here:
    """A runner that remembers what it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, job, inputs, report):
        self.given.append([item.name for item in inputs])
        predict_each(threshold, enumerate(inputs), job.results, report)


@pytest.fixture
def job(tmp_path):
    return Job(Path("runs/a"), Results(tmp_path / "out", manifest=Manifest(tmp_path / "out", Provenance("m", "0"))))


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abcd"):
        Volume(np.full((2, 2, 2), number, np.int16), np.eye(4)).write(tmp_path / "in" / f"{name}.nii.gz")
    return find_inputs([tmp_path / "in"], 1)


def test_a_second_run_does_what_the_first_did_not(job, inputs):
    runner, seen = Here(), []
    run_job(job, inputs[:2], runner)
    outcomes = run_job(job, inputs, runner, lambda done, total: seen.append((done, total)))
    assert runner.given == [["a", "b"], ["c", "d"]]
    assert [(o.name, o.output, o.earlier) for o in outcomes] == [
        (name, job.results.folder / f"{name}.nii.gz", name in "ab") for name in "abcd"
    ]
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_nothing_to_do_loads_nothing(job, inputs):
    run_job(job, inputs, Here())

    def no_runner(*_):
        raise AssertionError("there was nothing to run")

    assert all(outcome.earlier for outcome in run_job(job, inputs, no_runner))


def test_only_what_is_not_whole_is_done_again(job, inputs):
    runner = Here()
    run_job(job, inputs, runner)
    (job.results.folder / "c.nii.gz").write_bytes(b"")
    run_job(job, inputs, runner)
    assert runner.given[1:] == [["c"]]
    assert Volume.read(job.results.folder / "c.nii.gz").array.all()


def test_overwrite_does_all_again_and_a_part_of_it_passes_over_what_that_has_done(job, inputs):
    runner = Here()
    run_job(job, inputs, runner)
    run_job(job, inputs, runner, overwrite=True)
    assert runner.given == [list("abcd")] * 2
    run_job(job.on_another_host(), inputs, runner)  # as a task on a cluster would, or start again
    assert len(runner.given) == 2


def test_a_failure_is_done_again(job, inputs):
    inputs[1].files[0].write_bytes(b"no volume")
    outcomes = run_job(job, inputs, Here())
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    Volume(np.ones((2, 2, 2), np.int16), np.eye(4)).write(inputs[1].files[0])
    runner = Here()
    assert all(outcome.error is None for outcome in run_job(job, inputs, runner))
    assert runner.given == [["b"]]


def test_without_a_manifest_all_is_done(job, inputs):
    bare = Job(job.model, Results(job.results.folder))
    runner = Here()
    run_job(bare, inputs, runner)
    run_job(bare.on_another_host(), inputs, runner)
    assert runner.given == [list("abcd")] * 2
    assert not list(job.results.folder.glob("*.jsonl"))


def test_it_can_be_pickled(job):
    assert pickle.loads(pickle.dumps(job)) == job


def test_inputs_are_never_replaced(inputs, tmp_path):
    with pytest.raises(DataError, match="a mask would replace this input"):
        run_job(Job(Path("m"), Results(tmp_path / "in")), inputs, Here())


def test_loading_needs_a_run(job):
    with pytest.raises(WeightsError, match="not a run folder"):
        job.load(None)
