"""Which volumes there are among files, folders, trees of studies and lists of them."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.inputs import Input, find_inputs, read_list, require_unique_names, with_references
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
        assert found(files, num_channels) == {"one": ["a.nii"], "two": ["a.nii.gz"]}
        same = [*touch(tmp_path / "x" / "one", "a.nii"), *touch(tmp_path / "y" / "one", "a.nii")]
        with pytest.raises(DataError, match=r"x/one/a\.nii: 2 inputs have the name 'a'"):
            require_unique_names(find_inputs(same, num_channels))

    def test_a_folder_of_folders_of_one_case(self, tmp_path):
        for case in ("case_00000", "case_00001"):
            touch(tmp_path / case, "imaging.nii.gz", "segmentation.nii.gz")
        assert found([tmp_path], 1) == {"case_00000": ["imaging.nii.gz"], "case_00001": ["imaging.nii.gz"]}

    def test_channels_in_folders_of_one_case(self, tmp_path):
        for case in ("p1", "p2"):
            touch(tmp_path / case, "mr_0000.nii.gz", "mr_0001.nii.gz")
        files = sorted(tmp_path.glob("*/*"))
        assert found(files, 2) == {case: ["mr_0000.nii.gz", "mr_0001.nii.gz"] for case in ("p1", "p2")}

    def test_a_file_given_twice(self, tmp_path):
        files = touch(tmp_path, "a.nii")
        with pytest.raises(DataError, match="2 inputs have the name 'a'"):
            require_unique_names(find_inputs([*files, tmp_path], 1))

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.nii: no such file or folder"):
            find_inputs([*touch(tmp_path, "a.nii"), tmp_path / "gone.nii"], 1)

    def test_an_empty_folder(self, tmp_path):
        touch(tmp_path, "notes.txt")
        with pytest.raises(DataError, match=r"no \.nii, .* file in this folder or in a folder of one case"):
            find_inputs([tmp_path], 1)

    def test_channels_from_files_of_their_own(self, tmp_path):
        for channel in range(2):
            Volume(np.full((2, 2, 2), channel, np.int16), np.eye(4)).write(tmp_path / f"a_000{channel}.nii.gz")
        (item,) = find_inputs([tmp_path], 2)
        assert item.read().array[0, 0, 0].tolist() == [0, 1]


class TestDicom:
    def test_one_of_several_series(self, studies, tmp_path, write_series, stored_voxels):
        write_series(studies[0] / "more", stored_voxels((4, 4, 3)), SeriesInstanceUID="1.2.3.77")
        (item,) = find_inputs(studies[:1], 1, "1.2.3.77")
        assert item.read().shape == (4, 4, 3)
        (item,) = find_inputs(studies[:1], 1)
        with pytest.raises(VolumeError, match="2 series, choose one by its UID"):
            item.read()

    def test_a_uid_is_for_one_input(self, studies):
        with pytest.raises(DataError, match=r"--series 1\.2: a series can be chosen for one input, not for 2"):
            find_inputs(studies, 1, "1.2")

    def test_a_tree_of_patients_is_a_volume_a_study(self, tmp_path, write_series, stored_voxels):
        root = tmp_path / "cohort"
        for name, uid, series in (
            ("p1/ct", "1.1", "1.1.1"),
            ("p2/first", "2.1", "2.1.1"),
            ("p2/later", "2.2", "2.2.1"),
        ):
            write_series(root / name, stored_voxels(), StudyInstanceUID=uid, SeriesInstanceUID=series)
        items = find_inputs([root], 1)
        assert [(item.name, item.files) for item in items] == [
            ("p1", (root / "p1",)),
            ("p2_first", (root / "p2" / "first",)),
            ("p2_later", (root / "p2" / "later",)),
        ]
        assert all(item.read().shape == (9, 7, 5) for item in items)
        (one,) = find_inputs([root], 1, "2.2.1")
        assert one.files == (root,)


class TestAllFiles:
    def test_of_a_folder_its_tree(self, tmp_path):
        files = [*touch(tmp_path / "a", "2", "1", ".hidden"), *touch(tmp_path / "a" / "deep", "3")]
        assert Input("a", (tmp_path / "a",)).all_files() == [files[1], files[0], files[3]]

    def test_and_the_reference(self, tmp_path):
        (image, mask) = touch(tmp_path, "a.nii", "mask.nii")
        item = Input("a", (image,), reference=mask)
        assert (item.sources, item.all_files()) == ([image, mask], [image, mask])

    def test_of_files_themselves(self, tmp_path):
        files = tuple(touch(tmp_path, "b.nii", "a.nii"))
        assert Input("b", files).all_files() == list(files)


class TestWithReferences:
    def test_by_name_or_a_single_file(self, tmp_path):
        touch(tmp_path / "images", "b.nii", "a.nii.gz")
        masks = touch(tmp_path / "masks", "a.nii", "b.nii.gz", "c.nii")
        inputs = find_inputs([tmp_path / "images"], 1)
        assert [item.reference for item in with_references(inputs, tmp_path / "masks")] == masks[:2]
        assert with_references(inputs[:1], masks[2])[0].reference == masks[2]

    def test_missing(self, tmp_path):
        inputs = find_inputs(touch(tmp_path / "images", "a.nii", "b.nii"), 1)
        (mask,) = touch(tmp_path / "masks", "a.nii")
        for source in (mask, mask.parent):
            with pytest.raises(DataError, match=r"has no mask b\.nii\.gz$"):
                with_references(inputs, source)


class TestReadList:
    def test_a_text_file(self, tmp_path):
        (tmp_path / "list.txt").write_text("# a comment\na b.nii.gz\n\n  deep/c.nii \n/elsewhere/d.nii\n")
        assert read_list(tmp_path / "list.txt") == [
            tmp_path / "a b.nii.gz",
            tmp_path / "deep" / "c.nii",
            Path("/elsewhere/d.nii"),
        ]

    def test_a_table(self, tmp_path):
        (tmp_path / "list.csv").write_text('\ufeffage, input\n61, "a,b.nii.gz"\n70, \n33,c\n')
        assert read_list(tmp_path / "list.csv") == [tmp_path / "a,b.nii.gz", tmp_path / "c"]

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("a.csv", b"path\na.nii\n", "must name the column input"),
            ("a.csv", b"", "must name the column input"),
            ("a.txt", b"\n#a.nii\n", "lists nothing"),
            ("a.txt", b"\xff\xfe\x00", "cannot be read"),
        ],
    )
    def test_broken_ones(self, tmp_path, name, content, line):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: .*{line}"):
            read_list(tmp_path / name)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"):
            read_list(tmp_path / "gone.txt")
