"""Many inputs: how they are found, and that a broken one costs only itself."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.cohort import Input, find_inputs, predict_cohort
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.volume.volume import Volume


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def found(paths, num_channels=1):
    return {item.name: [file.name for file in item.files] for item in find_inputs(paths, num_channels)}


class TestFindInputs:
    def test_a_folder(self, tmp_path):
        touch(tmp_path, "b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt")
        assert found([tmp_path]) == {"a": ["a.nii.gz"], "b": ["b.nii"]}

    def test_files_and_folders_in_their_order(self, tmp_path):
        (first,) = touch(tmp_path, "z.nii")
        touch(tmp_path / "more", "b.nii", "a.nii")
        assert list(found([first, tmp_path / "more"])) == ["z", "a", "b"]

    def test_one_channel_keeps_its_suffix(self, tmp_path):
        files = touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
        assert found(files) == {"a_0000": ["a_0000.nii.gz"], "a_0001": ["a_0001.nii.gz"]}

    def test_files_of_a_channel_each_are_one_volume(self, tmp_path):
        touch(tmp_path, "a_0000.nii", "a_0001.nii", "b_0000.nii", "b_0001.nii")
        assert found([tmp_path], 2) == {"a": ["a_0000.nii", "a_0001.nii"], "b": ["b_0000.nii", "b_0001.nii"]}

    def test_channels_are_in_order_however_they_are_given(self, tmp_path):
        files = touch(tmp_path, "a_0002.nii", "a_0000.nii", "a_0001.nii")
        assert found(files, 3) == {"a": ["a_0000.nii", "a_0001.nii", "a_0002.nii"]}

    def test_a_file_with_all_its_channels_beside_them(self, tmp_path):
        files = touch(tmp_path, "whole.nii", "a_0000.nii", "a_0001.nii")
        assert found(files, 2) == {"whole": ["whole.nii"], "a": ["a_0000.nii", "a_0001.nii"]}

    def test_a_number_that_is_no_channel_is_part_of_the_name(self, tmp_path):
        files = touch(tmp_path, "study_1234.nii", "study_1235.nii")
        assert found(files, 2) == {"study_1234": ["study_1234.nii"], "study_1235": ["study_1235.nii"]}

    @pytest.mark.parametrize("num_channels", [1, 2])
    def test_two_volumes_of_one_name(self, tmp_path, num_channels):
        """Also for two channels: two files of one name are not the two channels of a volume."""
        files = [*touch(tmp_path / "one", "a.nii"), *touch(tmp_path / "two", "a.nii.gz")]
        with pytest.raises(DataError, match=r"one/a\.nii: 2 inputs have the name 'a'"):
            find_inputs(files, num_channels)

    def test_a_file_given_twice(self, tmp_path):
        files = touch(tmp_path, "a.nii")
        with pytest.raises(DataError, match="2 inputs have the name 'a'"):
            find_inputs([*files, tmp_path], 1)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.nii: no such file or folder"):
            find_inputs([*touch(tmp_path, "a.nii"), tmp_path / "gone.nii"], 1)

    def test_an_empty_folder(self, tmp_path):
        touch(tmp_path, "notes.txt")
        with pytest.raises(DataError, match=r"no \.nii or \.nii\.gz file in this folder"):
            find_inputs([tmp_path], 1)


def threshold(volume):
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
        outcomes = predict_cohort(threshold, inputs, out)
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
        for outcome in predict_cohort(threshold, inputs, tmp_path / "out"):
            if outcome.error:
                assert outcome.error.startswith(f"{tmp_path / 'in' / outcome.name}.nii.gz: ")
                assert outcome.error.count(str(tmp_path)) == 1
                assert "\n" not in outcome.error

    def test_a_file_of_the_working_folder_is_named_too(self, inputs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "in")

        def refuse(volume):
            raise VolumeError("there is no 0.5.")

        (outcome,) = predict_cohort(refuse, [Input("good", (Path("good.nii.gz"),))], tmp_path / "out")
        assert outcome.error == "good.nii.gz: there is no 0.5."

    def test_what_is_no_fault_of_the_user_costs_only_itself_too(self, inputs, tmp_path):
        def too_large(volume):
            raise MemoryError("no 64 GB here")

        outcomes = predict_cohort(too_large, inputs[1:2], tmp_path / "out")
        assert [outcome.error for outcome in outcomes] == [
            f"{tmp_path / 'in' / 'good.nii.gz'}: MemoryError: no 64 GB here"
        ]

    def test_failures_are_logged(self, inputs, tmp_path, caplog):
        predict_cohort(threshold, inputs, tmp_path / "out")
        assert len(caplog.records) == 2

    def test_progress_counts_failures_too(self, inputs, tmp_path):
        seen = []
        predict_cohort(threshold, inputs, tmp_path / "out", lambda done, total: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_channels_from_files_of_their_own(self, tmp_path):
        for channel in range(2):
            Volume(np.full((2, 2, 2), channel, np.int16), np.eye(4)).write(tmp_path / f"a_000{channel}.nii.gz")
        (item,) = find_inputs([tmp_path], 2)
        assert item.read().array[0, 0, 0].tolist() == [0, 1]

    def test_channels_on_different_grids(self, tmp_path):
        for channel in range(2):
            Volume(np.zeros((2, 2, 2 + channel), np.int16), np.eye(4)).write(tmp_path / f"a_000{channel}.nii.gz")
        (outcome,) = predict_cohort(threshold, find_inputs([tmp_path], 2), tmp_path / "out")
        assert outcome.output is None
        assert "a_0001.nii.gz: not on the grid of" in outcome.error

    def test_nor_by_its_boundary_map(self, tmp_path):
        image = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
        for name in ("a", "a_boundary"):
            image.write(tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match=r"a_boundary\.nii\.gz: a mask would replace this input"):
            predict_cohort(threshold, find_inputs([tmp_path], 1), tmp_path / "masks", auxiliary=tmp_path)

    def test_an_input_is_never_replaced_by_its_mask(self, inputs, tmp_path):
        before = (tmp_path / "in" / "good.nii.gz").read_bytes()
        with pytest.raises(DataError, match="a mask would replace this input"):
            predict_cohort(threshold, inputs, tmp_path / "out" / ".." / "in")
        assert (tmp_path / "in" / "good.nii.gz").read_bytes() == before

    def test_a_folder_that_cannot_be_made(self, inputs, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be made: "):
            predict_cohort(threshold, inputs, tmp_path / "file" / "out")

    def test_nothing_to_do(self, tmp_path):
        assert predict_cohort(threshold, [], tmp_path / "out") == []
        assert (tmp_path / "out").is_dir()


class TestDicom:
    @pytest.fixture
    def studies(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "st.1" / "deep", stored_voxels())
        write_series(tmp_path / "st.2", stored_voxels()[:, :, ::2], RescaleIntercept=0)
        return [tmp_path / "st.1", tmp_path / "st.2"]

    def test_a_folder_is_one_volume_on_its_own_grid(self, studies, tmp_path):
        found = find_inputs(studies, 1)
        assert [item.name for item in found] == ["st.1", "st.2"]
        outcomes = predict_cohort(threshold, found, tmp_path / "out")
        assert [outcome.error for outcome in outcomes] == [None, None]
        mask = Volume.read(tmp_path / "out" / "st.1.nii.gz")
        assert np.array_equal(mask.array, found[0].read().array > 0)

    def test_as_dicom(self, studies, tmp_path):
        from pydicom import dcmread

        written = MaskFormat("dicom-seg", {1: "bright"})
        predict_cohort(threshold, find_inputs(studies, 1), tmp_path / "out", mask_format=written)
        assert dcmread(tmp_path / "out" / "st.2.seg.dcm").SegmentSequence[0].SegmentLabel == "bright"

    def test_dicom_formats_want_dicom(self, inputs, tmp_path):
        outcomes = predict_cohort(threshold, inputs, tmp_path / "out", mask_format=MaskFormat("rtstruct", {1: "a"}))
        assert all("which this input is not" in outcome.error for outcome in outcomes)

    def test_one_of_several_series(self, studies, tmp_path, write_series, stored_voxels):
        write_series(studies[0] / "more", stored_voxels((4, 4, 3)), SeriesInstanceUID="1.2.3.77")
        (item,) = find_inputs(studies[:1], 1, "1.2.3.77")
        assert item.read().shape == (4, 4, 3)
        (outcome,) = predict_cohort(threshold, find_inputs(studies[:1], 1), tmp_path / "out")
        assert "2 series, choose one by its UID" in outcome.error

    def test_a_uid_is_for_one_input(self, studies):
        with pytest.raises(DataError, match=r"--series 1\.2: a series can be chosen for one input, not for 2"):
            find_inputs(studies, 1, "1.2")
