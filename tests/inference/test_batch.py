"""Many inputs: a broken one costs only itself, and no more than three are in memory."""

import json
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.batch import Results, predict_cohort, predict_each
from sam2_3dmed.inference.inputs import Input, find_inputs
from sam2_3dmed.inference.manifest import Manifest, Provenance
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.volume.volume import Volume


def threshold(volume, probabilities=None, *, reference=None):
    """In place of a predictor."""
    if volume.num_channels != 1:
        raise VolumeError("the volume has 2 channels, the plan has 1")
    return volume.with_array((volume.array > 0).astype(np.uint8))


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, array in {"good": np.eye(3)[None], "two": np.zeros((2, 2, 2, 2)), "zero": np.zeros((1, 2, 3))}.items():
        Volume(array.astype(np.float32), np.diag([1.0, 2, 3, 1])).write(folder / f"{name}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return find_inputs([folder], 1)


class TestPredictCohort:
    def test_a_broken_input_costs_only_itself(self, inputs, tmp_path):
        out = tmp_path / "new" / "masks"
        outcomes = predict_cohort(threshold, inputs, Results(out))
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
        for outcome in predict_cohort(threshold, inputs, Results(tmp_path / "out")):
            if outcome.error:
                assert outcome.error.startswith(f"{tmp_path / 'in' / outcome.name}.nii.gz: ")
                assert outcome.error.count(str(tmp_path)) == 1
                assert "\n" not in outcome.error

    def test_a_file_of_the_working_folder_is_named_too(self, inputs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "in")

        def refuse(volume, probabilities, *, reference):
            raise VolumeError("there is no 0.5.")

        (outcome,) = predict_cohort(refuse, [Input("good", (Path("good.nii.gz"),))], Results(tmp_path / "out"))
        assert outcome.error == "good.nii.gz: there is no 0.5."

    def test_what_is_no_fault_of_the_user_costs_only_itself_too(self, inputs, tmp_path):
        def too_large(volume, probabilities, *, reference):
            raise MemoryError("no 64 GB here")

        outcomes = predict_cohort(too_large, inputs[1:2], Results(tmp_path / "out"))
        assert [outcome.error for outcome in outcomes] == [
            f"{tmp_path / 'in' / 'good.nii.gz'}: MemoryError: no 64 GB here"
        ]

    def test_failures_are_logged(self, inputs, tmp_path, caplog):
        predict_cohort(threshold, inputs, Results(tmp_path / "out"))
        assert len(caplog.records) == 2

    def test_progress_counts_failures_too(self, inputs, tmp_path):
        seen = []
        predict_cohort(threshold, inputs, Results(tmp_path / "out"), lambda done, total: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_channels_on_different_grids(self, tmp_path):
        for channel in range(2):
            Volume(np.zeros((2, 2, 2 + channel), np.int16), np.eye(4)).write(tmp_path / f"a_000{channel}.nii.gz")
        (outcome,) = predict_cohort(threshold, find_inputs([tmp_path], 2), Results(tmp_path / "out"))
        assert outcome.output is None
        assert "a_0001.nii.gz: not on the grid of" in outcome.error

    def test_nor_by_its_boundary_map(self, tmp_path):
        image = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
        for name in ("a", "a_boundary"):
            image.write(tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match=r"a_boundary\.nii\.gz: a mask would replace this input"):
            predict_cohort(threshold, find_inputs([tmp_path], 1), Results(tmp_path / "masks", auxiliary=tmp_path))

    def test_an_input_is_never_replaced_by_its_mask(self, inputs, tmp_path):
        before = (tmp_path / "in" / "good.nii.gz").read_bytes()
        with pytest.raises(DataError, match="a mask would replace this input"):
            predict_cohort(threshold, inputs, Results(tmp_path / "out" / ".." / "in"))
        assert (tmp_path / "in" / "good.nii.gz").read_bytes() == before

    def test_a_folder_that_cannot_be_made(self, inputs, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be made: "):
            predict_cohort(threshold, inputs, Results(tmp_path / "file" / "out"))

    def test_nothing_to_do(self, tmp_path):
        assert predict_cohort(threshold, [], Results(tmp_path / "out")) == []
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

        def predictor(volume, probabilities, *, reference):
            assert second.wait(30)
            seen.append(len(asked))
            return threshold(volume)

        (tmp_path / "out").mkdir()
        predict_each(predictor, supply(), Results(tmp_path / "out"), lambda number, outcome: None)
        assert all(count <= done + 2 for done, count in enumerate(seen))
        assert len(seen) == 4

    def test_one_is_written_while_the_next_is_computed(self, four, tmp_path):
        written = {number: Event() for number in range(4)}
        computed = []

        def predictor(volume, probabilities, *, reference):
            computed.append(volume)
            assert len(computed) == 1 or written[len(computed) - 2].wait(30)
            return threshold(volume)

        (tmp_path / "out").mkdir()
        predict_each(
            predictor, enumerate(four), Results(tmp_path / "out"), lambda number, outcome: written[number].set()
        )
        assert all(event.is_set() for event in written.values())

    def test_each_finished_case_is_in_the_manifest(self, inputs, tmp_path):
        results = Results(tmp_path, auxiliary=None, manifest=Manifest(tmp_path, Provenance("m", "0")))
        outcomes = predict_cohort(threshold, inputs, results)
        lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
        assert [line["name"] for line in lines] == [o.name for o in outcomes if o.error is None] == ["good", "zero"]
        assert results.manifest.finished(inputs) == [False, True, False, True]


class TestDicom:
    def test_a_folder_is_one_volume_on_its_own_grid(self, studies, tmp_path):
        found = find_inputs(studies, 1)
        assert [item.name for item in found] == ["st.1", "st.2"]
        outcomes = predict_cohort(threshold, found, Results(tmp_path / "out"))
        assert [outcome.error for outcome in outcomes] == [None, None]
        mask = Volume.read(tmp_path / "out" / "st.1.nii.gz")
        assert np.array_equal(mask.array, found[0].read().array > 0)

    def test_as_dicom(self, studies, tmp_path):
        from pydicom import dcmread

        written = MaskFormat("dicom-seg", {1: "bright"})
        predict_cohort(threshold, find_inputs(studies, 1), Results(tmp_path / "out", mask_format=written))
        assert dcmread(tmp_path / "out" / "st.2.seg.dcm").SegmentSequence[0].SegmentLabel == "bright"

    def test_dicom_formats_want_dicom(self, inputs, tmp_path):
        outcomes = predict_cohort(
            threshold, inputs, Results(tmp_path / "out", mask_format=MaskFormat("rtstruct", {1: "a"}))
        )
        assert all("which this input is not" in outcome.error for outcome in outcomes)
