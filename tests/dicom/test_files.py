"""Which files are DICOM, in folders and zips."""

import zipfile

import pytest

from sam2_3dmed.dicom.files import DicomFile, holds_dicom, opened, read_headers
from sam2_3dmed.errors import VolumeError


@pytest.fixture
def series(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "study" / "deep", stored_voxels())
    (tmp_path / "study" / "readme.txt").write_text("not an image")
    (tmp_path / "study" / "deep" / "._000_0.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return tmp_path / "study"


def test_a_tree_holds_dicom(series):
    assert holds_dicom(series)
    assert not holds_dicom(series / "readme.txt")


def test_an_empty_folder_holds_none(tmp_path):
    assert not holds_dicom(tmp_path)


def test_headers_without_pixels_and_without_other_files(series):
    headers = read_headers(series)
    assert len(headers) == 5
    assert all("PixelData" not in header for _, header in headers)
    assert all(header.SeriesInstanceUID == "1.2.3.4" for _, header in headers)


def test_members_of_a_zip_are_named(series, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (series / "deep").glob("0*.dcm"):
            archive.write(file, f"x/{file.name}")
    assert holds_dicom(path)
    assert str(read_headers(path)[0][0]) == f"{path}/x/000_0.dcm"


def test_opened_gives_the_content(series):
    (file,) = series.glob("*.txt")
    assert [stream.read() for _, stream in opened([DicomFile(file)])] == [b"not an image"]


def test_a_file_that_vanished(tmp_path):
    with pytest.raises(VolumeError, match=r"gone: cannot be read"):
        list(opened([DicomFile(tmp_path / "gone")]))
