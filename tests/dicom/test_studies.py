"""Studies in trees of folders: distinguished by their UID, from one file a folder."""

import os
from time import perf_counter

import pytest

from sam2_3dmed.dicom.files import study_folders, study_name
from sam2_3dmed.errors import VolumeError


@pytest.fixture
def tree(tmp_path, write_series, stored_voxels):
    """Makes series of two slices: path below the root -> study UID."""

    def make(studies):
        for number, (path, uid) in enumerate(studies.items()):
            series = f"1.2.{number}"
            write_series(tmp_path / path, stored_voxels((3, 2, 2)), StudyInstanceUID=uid, SeriesInstanceUID=series)
        return tmp_path

    return make


def below(root):
    return [folder.relative_to(root).as_posix() for folder in study_folders(root)]


def test_one_study_is_the_root_however_deep_and_wide(tree):
    assert below(tree({"a/ct": "1", "a/mr": "1", "b": "1"})) == ["."]


def test_the_highest_folder_that_holds_a_study_alone(tree):
    assert below(tree({"p1/x/ct": "1", "p1/x/mr": "1", "p2/2020/ct": "2", "p2/2021/ct": "3"})) == [
        "p1",
        "p2/2020",
        "p2/2021",
    ]


def test_one_whose_uid_was_taken_away_is_a_study_beside_the_others(tree):
    assert below(tree({"p1/ct": "1", "p1/mr": "1", "p2/ct": ""})) == ["p1", "p2"]


def test_a_directory_file_is_no_study(tree):
    from pydicom import Dataset
    from pydicom.uid import ExplicitVRLittleEndian

    root = tree({"a": "1", "b": "2"})
    listing = Dataset()
    listing.FileSetID = "SET"
    listing.ensure_file_meta()
    listing.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    listing.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    listing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listing.save_as(root / "DICOMDIR", enforce_file_format=True)
    assert below(root) == ["a", "b"]


def test_files_that_are_none_and_empty_folders_say_nothing(tree):
    root = tree({"a": "1", "b": "2"})
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("not DICOM")
    (root / "a" / "000_.txt").write_text("first in its folder")
    assert below(root) == ["a", "b"]


@pytest.mark.parametrize(
    "studies", [{"s1/a": "1", "s2/b": "1", "s1/c": "2"}, {"a": "1", "b": "1", "c": "2"}, {".": "1", "b": "2"}]
)
def test_studies_that_lie_among_each_other(tree, studies):
    with pytest.raises(VolumeError, match="the folders of several studies lie among each other"):
        study_folders(tree(studies))


def test_nothing_at_all(tmp_path):
    assert study_folders(tmp_path) == [tmp_path]


def test_names(tmp_path):
    assert study_name(tmp_path, tmp_path) == tmp_path.name
    assert study_name(tmp_path, tmp_path / "p1" / "2020") == "p1_2020"


def test_studies_that_are_links(tree, tmp_path_factory, write_series, stored_voxels, caplog):
    far = tmp_path_factory.mktemp("far")
    write_series(far / "ct", stored_voxels((3, 2, 2)), StudyInstanceUID="3")
    root = tree({"p1/ct": "1", "p2/ct": "2"})
    (root / "p3").symlink_to(far)
    (root / "p4").symlink_to(root / "gone")
    assert below(root) == ["p1", "p2", "p3"]
    assert f"{root}: 1 files or folders left out; the first: {root}/p4: a link to nothing" in caplog.text


def test_a_damaged_file_before_the_others(tree):
    root = tree({"p1": "1", "p2": "2"})
    (root / "p1" / "000.dcm").write_bytes(b"\0" * 128 + b"DICM\2\0")
    assert below(root) == ["p1", "p2"]


def test_a_name_that_is_not_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode("M\xfcller".encode("latin-1"))
    assert study_name(tmp_path, folder) == "M\xfcller"


@pytest.mark.long
def test_ten_thousand_studies_within_a_minute(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "one", stored_voxels((3, 2, 1)), StudyInstanceUID="1.2.300000")
    (file,) = (tmp_path / "one").iterdir()
    content = file.read_bytes()
    for number in range(10_000):
        (tmp_path / "all" / f"p{number}" / "ct").mkdir(parents=True)
        (tmp_path / "all" / f"p{number}" / "ct" / "0.dcm").write_bytes(
            content.replace(b"1.2.300000", f"1.2.3{number:05d}".encode())
        )
    began = perf_counter()
    assert len(study_folders(tmp_path / "all")) == 10_000
    assert perf_counter() - began < 60
