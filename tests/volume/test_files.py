"""Which files are volumes, how their cases are called, and channels that lie in files of their own."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.files import (
    case_name,
    list_volumes,
    named_by_folder,
    read_channels,
    require_same_grid,
    volumes_of_case_folders,
    with_voxels,
)
from sam2_3dmed.volume.volume import Volume


@pytest.fixture
def write(tmp_path: Path):
    def save(name, array, affine=None) -> Path:
        Volume(np.asarray(array), np.eye(4) if affine is None else affine).write(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("file", "plain", "without_channel"),
    [
        ("a.nii.gz", "a", "a"),
        ("a.nii", "a", "a"),
        ("a.img", "a", "a"),
        ("a", "a", "a"),
        ("a.b.nii.gz", "a.b", "a.b"),
        ("a_0001.nii.gz", "a_0001", "a"),
        ("a_0001.nii", "a_0001", "a"),
        ("a_001.nii.gz", "a_001", "a_001"),
        ("a_00001.nii.gz", "a_00001", "a_00001"),
        ("a_000x.nii.gz", "a_000x", "a_000x"),
        ("a_0001_b.nii.gz", "a_0001_b", "a_0001_b"),
        ("a_0001_0000.nii.gz", "a_0001_0000", "a_0001"),
        ("A.NII.GZ", "A", "A"),
        ("A_0001.Nii.gz", "A_0001", "A"),
        ("a.seg.nrrd", "a", "a"),
        ("a.seg.nii.gz", "a.seg", "a.seg"),
        ("a.b.nrrd", "a.b", "a.b"),
        ("a_0000.mha", "a_0000", "a"),
    ],
)
def test_case_name(file, plain, without_channel):
    assert case_name(Path("folder.nii") / file) == plain
    assert case_name(Path("folder.nii") / file, channel_suffix=True) == without_channel


class TestListVolumes:
    def test_sorted_and_without_what_is_none(self, tmp_path: Path):
        for name in ("b.nii", "a.nii.gz", "._a.nii.gz", ".hidden.nii", "notes.txt", "c.nii.gz.part", "d.gz"):
            (tmp_path / name).touch()
        assert [file.name for file in list_volumes(tmp_path)] == ["a.nii.gz", "b.nii"]

    def test_only_some_endings(self, tmp_path: Path):
        for name in ("b.nii", "a.nii.gz"):
            (tmp_path / name).touch()
        assert [file.name for file in list_volumes(tmp_path, [".nii.gz"])] == ["a.nii.gz"]

    def test_capitals_and_other_formats(self, tmp_path: Path):
        for name in ("a.NII.GZ", "b.Nii", "c.nrrd", "d.MHA", "e.mhd", "e.raw", "f.seg.nrrd"):
            (tmp_path / name).touch()
        found = ["a.NII.GZ", "b.Nii", "c.nrrd", "d.MHA", "e.mhd", "f.seg.nrrd"]
        assert [file.name for file in list_volumes(tmp_path)] == found

    def test_nothing(self, tmp_path: Path):
        assert list_volumes(tmp_path) == []

    def test_no_folder(self, tmp_path: Path):
        with pytest.raises(VolumeError, match=r"gone: no such folder$"):
            list_volumes(tmp_path / "gone")


class TestReadChannels:
    def test_one_file_is_itself(self, write):
        array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        volume = read_channels([write("a.nii.gz", array)])
        assert np.array_equal(volume.array, array)
        assert volume.array.dtype == np.int16

    def test_one_file_with_channels_is_itself(self, write):
        array = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
        assert np.array_equal(read_channels([write("a.nii.gz", array)]).array, array)

    def test_several_become_channels_in_their_order(self, write):
        affine = np.diag([-1.0, 2, 3, 1])
        arrays = [np.full((2, 3, 4), value, dtype=np.int16) for value in (5, 7, 6)]
        volume = read_channels([write(f"a_000{i}.nii.gz", array, affine) for i, array in enumerate(arrays)])
        assert volume.shape == (2, 3, 4)
        assert volume.array[0, 0, 0].tolist() == [5, 7, 6]
        assert np.array_equal(volume.affine, affine)

    def test_different_types_keep_their_values(self, write):
        files = [
            write("a_0000.nii", np.full((2, 2, 2), -300, dtype=np.int16)),
            write("a_0001.nii", np.full((2, 2, 2), 0.5, dtype=np.float32)),
        ]
        assert read_channels(files).array[1, 1, 1].tolist() == [-300, 0.5]

    def test_different_grids_name_both_files(self, write):
        files = [write("a_0000.nii", np.zeros((2, 3, 4))), write("a_0001.nii", np.zeros((2, 3, 5)))]
        with pytest.raises(VolumeError, match=r"a_0001\.nii: not on the grid of .*a_0000\.nii: shapes differ"):
            read_channels(files)

    def test_a_file_with_channels_among_several(self, write):
        files = [write("a_0000.nii", np.zeros((2, 3, 4))), write("a_0001.nii", np.zeros((2, 3, 4, 2)))]
        with pytest.raises(VolumeError, match=r"a_0001\.nii: 2 channels, but one file per channel is expected"):
            read_channels(files)

    def test_a_missing_file(self, write, tmp_path: Path):
        with pytest.raises(VolumeError, match=r"gone\.nii"):
            read_channels([write("a_0000.nii", np.zeros((2, 3, 4))), tmp_path / "gone.nii"])


def test_require_same_grid():
    a, moved = Volume(np.zeros((2, 3, 4)), np.eye(4)), np.eye(4)
    require_same_grid(a, Path("a.nii"), Volume(np.ones((2, 3, 4, 2)), np.eye(4)), Path("b.nii"))
    moved[0, 3] = 3
    with pytest.raises(VolumeError) as caught:
        require_same_grid(a, Path("a.nii"), Volume(np.zeros((2, 3, 4)), moved), Path("b.nii"))
    assert str(caught.value) == "b.nii: not on the grid of a.nii: affines differ: the same voxel lies up to 3 mm apart"


class TestFoldersOfOneCase:
    """As in KiTS: case_00000/imaging.nii.gz and case_00000/segmentation.nii.gz."""

    @pytest.fixture
    def kits(self, tmp_path: Path):
        for case in ("case_00000", "case_00001"):
            (tmp_path / case).mkdir()
            for name in ("imaging", "segmentation"):
                (tmp_path / case / f"{name}.nii.gz").touch()
        return tmp_path

    def test_images_and_masks(self, kits: Path):
        cases = ["case_00000", "case_00001"]
        assert volumes_of_case_folders(kits) == [kits / case / "imaging.nii.gz" for case in cases]
        assert volumes_of_case_folders(kits, masks=True) == [kits / case / "segmentation.nii.gz" for case in cases]

    def test_several_images_in_a_folder(self, kits: Path):
        (kits / "case_00001" / "other.nii.gz").touch()
        with pytest.raises(VolumeError, match=r"no image in this folder, and case_00001 has 2 \(imaging.nii.gz, "):
            volumes_of_case_folders(kits)

    def test_the_folder_tells_files_of_one_name_apart(self):
        def named(*paths):
            files = [Path(path) for path in paths]
            return named_by_folder(files, [case_name(file) for file in files])

        assert named("a/imaging.nii", "b/imaging.nii", "b/other.nii") == ["a", "b", "other"]
        assert named("x/a/imaging.nii", "y/a/imaging.nii") == ["imaging", "imaging"]
        assert named("a/x.nii", "b/x.nii", "c/a.nii") == ["x", "x", "a"]
        assert named("a/x.nii", "a/x.nii") == ["x", "x"]


@pytest.mark.parametrize(
    ("header", "content", "voxels"),
    [
        ("a.mhd", "NDims = 3\r\nElementDataFile = b c.raw\r\n", "b c.raw"),
        ("a.nhdr", "NRRD0004\n# data file: no.raw\ndata file: ./a.raw\n", "a.raw"),
        ("a.NHDR", "NRRD0004\ndatafile: a.raw.gz\n", "a.raw.gz"),
        ("a.hdr", "", "a.img"),
    ],
)
def test_the_file_with_the_voxels(tmp_path, header, content, voxels):
    (tmp_path / header).write_bytes(content.encode())
    assert with_voxels(tmp_path / header) == [tmp_path / header]
    (tmp_path / voxels).touch()
    assert with_voxels(tmp_path / header) == [tmp_path / header, tmp_path / voxels]


def test_voxels_in_the_file_itself(tmp_path):
    (tmp_path / "a.mhd").write_bytes(b"NDims = 3\nElementDataFile = LOCAL\n\0\0")
    for name in ("a.mhd", "a.nii.gz", "missing.mhd"):
        assert with_voxels(tmp_path / name) == [tmp_path / name]
