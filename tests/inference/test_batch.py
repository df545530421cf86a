"""Many inputs: a broken one fails alone, finished ones are passed over, and at most three are in memory."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from sam2_3dmed.errors import Cancelled, DataError, VolumeError
from sam2_3dmed.inference.batch import Job, predict_batch, predict_each
from sam2_3dmed.inference.inputs import Input, find_inputs
from sam2_3dmed.inference.interface import require_not_cancelled
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.volume.volume import Volume


def threshold(volume, *, reference=None, probabilities=None, on_slice=None, cancel=None):
    """In place of a predictor."""
    for index in range(volume.shape[2]):
        if on_slice is not None:
            on_slice(index + 1, volume.shape[2])
        require_not_cancelled(cancel)
    if volume.num_channels != 1:
        raise VolumeError("the volume has 2 channels, the plan has 1")
    return volume.with_array((volume.array > 0).astype(np.uint8))


def of(segmenter):
    """A job's `load`."""
    return partial(_given, segmenter)


def _given(segmenter, device):
    return segmenter


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, array in {"good": np.eye(3)[None], "two": np.zeros((2, 2, 2, 2)), "zero": np.zeros((1, 2, 3))}.items():
        Volume(array.astype(np.float32), np.diag([1.0, 2, 3, 1])).write(folder / f"{name}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return find_inputs([folder], 1)


class TestPredictBatch:
    def test_a_broken_input_costs_only_itself(self, inputs, tmp_path):
        out = tmp_path / "new" / "masks"
        outcomes = predict_batch(Job(of(threshold), out), inputs)
        assert [(o.name, o.output and o.output.name) for o in outcomes] == [
            ("broken", None),
            ("good", "good.nii.gz"),
            ("two", None),
            ("zero", "zero.nii.gz"),
        ]
        assert sorted(file.name for file in out.iterdir()) == ["good.nii.gz", "zero.nii.gz"]
        assert np.array_equal(Volume.read(out / "good.nii.gz").array[0], np.eye(3))
        assert [o.error is None for o in outcomes] == [False, True, False, True]

    def test_an_error_is_one_line_that_names_the_file_once(self, inputs, tmp_path):
        for outcome in predict_batch(Job(of(threshold), tmp_path / "out"), inputs):
            if outcome.error:
                assert outcome.error.startswith(f"{tmp_path / 'in' / outcome.name}.nii.gz: ")
                assert outcome.error.count(str(tmp_path)) == 1
                assert "\n" not in outcome.error

    def test_a_file_of_the_working_folder_is_named_too(self, inputs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "in")

        def refuse(volume, **_):
            raise VolumeError("there is no 0.5.")

        (outcome,) = predict_batch(Job(of(refuse), tmp_path / "out"), [Input("good", (Path("good.nii.gz"),))])
        assert outcome.error == "good.nii.gz: there is no 0.5."

    def test_what_is_no_fault_of_the_user_costs_only_itself_too(self, inputs, tmp_path):
        def too_large(volume, **_):
            raise MemoryError("no 64 GB here")

        outcomes = predict_batch(Job(of(too_large), tmp_path / "out"), inputs[1:2])
        assert [outcome.error for outcome in outcomes] == [
            f"{tmp_path / 'in' / 'good.nii.gz'}: MemoryError: no 64 GB here"
        ]

    def test_failures_are_logged(self, inputs, tmp_path, caplog):
        predict_batch(Job(of(threshold), tmp_path / "out"), inputs)
        assert len(caplog.records) == 2

    def test_progress_counts_failures_too(self, inputs, tmp_path):
        seen = []
        predict_batch(
            Job(of(threshold), tmp_path / "out"),
            inputs,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_channels_on_different_grids(self, tmp_path):
        for channel in range(2):
            Volume(np.zeros((2, 2, 2 + channel), np.int16), np.eye(4)).write(tmp_path / f"a_000{channel}.nii.gz")
        (outcome,) = predict_batch(Job(of(threshold), tmp_path / "out"), find_inputs([tmp_path], 2))
        assert outcome.output is None
        assert "a_0001.nii.gz: not on the grid of" in outcome.error

    def test_nor_by_its_boundary_map(self, tmp_path):
        image = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
        files = [tmp_path / "a.nii.gz", tmp_path / "out" / "auxiliary" / "a_boundary.nii.gz"]
        files[1].parent.mkdir(parents=True)
        for file in files:
            image.write(file)
        found = find_inputs(files, 1)
        with pytest.raises(DataError, match=r"a_boundary\.nii\.gz: a mask would replace this input"):
            predict_batch(Job(of(threshold), tmp_path / "out", auxiliary=True), found)

    def test_an_input_is_never_replaced_by_its_mask(self, inputs, tmp_path):
        before = (tmp_path / "in" / "good.nii.gz").read_bytes()
        with pytest.raises(DataError, match="a mask would replace this input"):
            predict_batch(Job(of(threshold), tmp_path / "out" / ".." / "in"), inputs)
        assert (tmp_path / "in" / "good.nii.gz").read_bytes() == before

    def test_a_folder_that_cannot_be_made(self, inputs, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be made: "):
            predict_batch(Job(of(threshold), tmp_path / "file" / "out"), inputs)

    def test_nothing_to_do(self, tmp_path):
        assert predict_batch(Job(of(threshold), tmp_path / "out"), []) == []
        assert (tmp_path / "out").is_dir()


@pytest.fixture
def four(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        Volume(np.ones((2, 2, 2), np.int16), np.eye(4)).write(tmp_path / "in" / f"{name}.nii.gz")
    return find_inputs([tmp_path / "in"], 1)


class TestPredictEach:
    """The events wait for seconds, and what they wait for comes at once unless nothing overlaps."""

    def test_the_next_is_read_while_one_is_computed_and_no_more(self, four, tmp_path):
        asked, seen = [], []
        second = Event()

        def supply():
            for number, item in enumerate(four):
                asked.append(number)
                if number == 1:
                    second.set()
                yield number, item

        def predictor(volume, **_):
            assert second.wait(30)
            seen.append(len(asked))
            return threshold(volume)

        (tmp_path / "out").mkdir()
        predict_each(predictor, supply(), Job(of(predictor), tmp_path / "out"), lambda number, outcome: None)
        assert all(count <= done + 2 for done, count in enumerate(seen))
        assert len(seen) == 4

    def test_one_is_written_while_the_next_is_computed(self, four, tmp_path):
        written = {number: Event() for number in range(4)}
        computed = []

        def predictor(volume, **_):
            computed.append(volume)
            assert len(computed) == 1 or written[len(computed) - 2].wait(30)
            return threshold(volume)

        (tmp_path / "out").mkdir()
        job = Job(of(predictor), tmp_path / "out")
        predict_each(predictor, enumerate(four), job, lambda number, outcome: written[number].set())
        assert all(event.is_set() for event in written.values())

    def test_each_finished_case_is_in_the_manifest(self, inputs, tmp_path):
        job = Job(of(threshold), tmp_path, manifest=Manifest(tmp_path, "m", "0"))
        outcomes = predict_batch(job, inputs)
        lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
        assert [line["name"] for line in lines] == [o.name for o in outcomes if o.error is None] == ["good", "zero"]
        assert job.manifest.finished(inputs) == [False, True, False, True]


class TestDicom:
    def test_a_folder_is_one_volume_on_its_own_grid(self, studies, tmp_path):
        found = find_inputs(studies, 1)
        assert [item.name for item in found] == ["st.1", "st.2"]
        outcomes = predict_batch(Job(of(threshold), tmp_path / "out"), found)
        assert [outcome.error for outcome in outcomes] == [None, None]
        mask = Volume.read(tmp_path / "out" / "st.1.nii.gz")
        assert np.array_equal(mask.array, found[0].read().array > 0)

    def test_as_dicom(self, studies, tmp_path):
        from pydicom import dcmread

        written = MaskFormat("dicom-seg", {1: "bright"})
        predict_batch(Job(of(threshold), tmp_path / "out", mask_format=written), find_inputs(studies, 1))
        assert dcmread(tmp_path / "out" / "st.2.seg.dcm").SegmentSequence[0].SegmentLabel == "bright"

    def test_dicom_formats_want_dicom(self, inputs, tmp_path):
        job = Job(of(threshold), tmp_path / "out", mask_format=MaskFormat("rtstruct", {1: "a"}))
        outcomes = predict_batch(job, inputs)
        assert all("which this input is not" in outcome.error for outcome in outcomes)


class Here:
    """A runner that keeps the names that it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, job, inputs, report):
        self.given.append([item.name for item in inputs])
        predict_each(threshold, enumerate(inputs), job, report)


@pytest.fixture
def job(tmp_path):
    return Job(of(threshold), tmp_path / "out", manifest=Manifest(tmp_path / "out", "m", "0"))


def test_a_second_run_does_what_the_first_did_not(job, four):
    runner, seen = Here(), []
    predict_batch(job, four[:2], runner)
    outcomes = predict_batch(job, four, runner, progress=lambda done, total: seen.append((done, total)))
    assert runner.given == [["a", "b"], ["c", "d"]]
    assert [(o.name, o.output, o.earlier) for o in outcomes] == [
        (name, job.folder / f"{name}.nii.gz", name in "ab") for name in "abcd"
    ]
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_nothing_to_do_loads_nothing(job, four):
    predict_batch(job, four, Here())

    def no_runner(*_):
        raise AssertionError("there was nothing to run")

    assert all(outcome.earlier for outcome in predict_batch(job, four, no_runner))


def test_only_what_is_not_whole_is_done_again(job, four):
    runner = Here()
    predict_batch(job, four, runner)
    (job.folder / "c.nii.gz").write_bytes(b"")
    predict_batch(job, four, runner)
    assert runner.given[1:] == [["c"]]
    assert Volume.read(job.folder / "c.nii.gz").array.all()


def test_overwrite_does_all_again_and_a_part_of_it_passes_over_what_that_has_done(job, four):
    runner = Here()
    predict_batch(job, four, runner)
    predict_batch(job, four, runner, overwrite=True)
    assert runner.given == [list("abcd")] * 2
    on_another_host = replace(job, manifest=replace(job.manifest, per_host=True))
    predict_batch(on_another_host, four, runner)  # as a task on a cluster would, or start again
    assert len(runner.given) == 2


def test_a_failure_is_done_again(job, four):
    four[1].files[0].write_bytes(b"no volume")
    outcomes = predict_batch(job, four, Here())
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    Volume(np.ones((2, 2, 2), np.int16), np.eye(4)).write(four[1].files[0])
    runner = Here()
    assert all(outcome.error is None for outcome in predict_batch(job, four, runner))
    assert runner.given == [["b"]]


def test_a_scan_that_is_replaced_while_it_is_computed_is_done_again(job, four):
    def replacing(volume, **options):
        mask = threshold(volume, **options)
        Volume(np.zeros((2, 2, 3), np.int16), np.eye(4)).write(four[0].files[0])
        return mask

    predict_batch(replace(job, load=of(replacing)), four[:1])
    assert Volume.read(job.folder / "a.nii.gz").shape == (2, 2, 2)
    (outcome,) = predict_batch(job, four[:1])
    assert not outcome.earlier
    assert Volume.read(job.folder / "a.nii.gz").shape == (2, 2, 3)


def test_a_scan_that_has_vanished_costs_only_itself(job, four):
    predict_batch(job, four)
    four[2].files[0].unlink()
    outcomes = predict_batch(job, four)
    assert [outcome.earlier for outcome in outcomes] == [True, True, False, True]
    assert outcomes[2].error == f"{four[2].files[0]}: cannot be read: No such file or directory"


def test_without_a_manifest_all_is_done(job, four):
    bare = Job(job.load, job.folder)
    runner = Here()
    predict_batch(bare, four, runner)
    predict_batch(bare, four, runner)
    assert runner.given == [list("abcd")] * 2
    assert not list(job.folder.glob("*.jsonl"))


def test_it_can_be_pickled(job):
    assert pickle.loads(pickle.dumps(job)).manifest == job.manifest


class TestProgressAndCancelling:
    def test_each_slice_of_each_input_is_reported(self, four):
        seen = []
        predict_batch(Job(of(threshold), None), four[:2], on_slice=lambda *state: seen.append(state))
        assert seen == [("a", 1, 2), ("a", 2, 2), ("b", 1, 2), ("b", 2, 2)]

    def test_cancelled_from_another_thread_what_was_finished_stays(self, job, four):
        cancel, asked = Event(), Event()
        canceller = Thread(target=lambda: asked.wait(60) and cancel.set())
        canceller.start()

        def on_slice(name, done, total):
            if (name, done) == ("c", 1):
                asked.set()
                canceller.join()

        with pytest.raises(Cancelled):
            predict_batch(job, four, on_slice=on_slice, cancel=cancel)
        assert job.manifest.finished(four) == [True, True, False, False]
        runner = Here()
        predict_batch(job, four, runner)
        assert runner.given == [["c", "d"]]


def test_without_a_folder_masks_stay_in_memory(inputs):
    outcomes = predict_batch(Job(of(threshold), None), inputs)
    assert [(o.output, o.mask is None, o.error is None) for o in outcomes] == [
        (None, True, False),
        (None, False, True),
        (None, True, False),
        (None, False, True),
    ]
    assert np.array_equal(outcomes[1].mask.array[0], np.eye(3))
