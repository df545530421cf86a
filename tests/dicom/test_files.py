"""Which files are DICOM, in folders and zips."""

import shutil
import zipfile

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from sam2_3dmed.dicom.files import DicomFile, holds_dicom, opened, read_headers
from sam2_3dmed.dicom.series import choose_series
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
    headers, _ = read_headers(series)
    assert len(headers) == 5
    assert all("PixelData" not in header for _, header in headers)
    assert all(header.SeriesInstanceUID == "1.2.3.4" for _, header in headers)


def test_members_of_a_zip_are_named(series, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (series / "deep").glob("0*.dcm"):
            archive.write(file, f"x/{file.name}")
    assert holds_dicom(path)
    assert str(read_headers(path)[0][0][0]) == f"{path}/x/000_0.dcm"


def test_opened_gives_the_content(series):
    (file,) = series.glob("*.txt")
    assert [stream.read() for _, stream in opened([DicomFile(file)])] == [b"not an image"]


def test_a_file_that_vanished(tmp_path):
    with pytest.raises(VolumeError, match=r"gone: cannot be read"):
        list(opened([DicomFile(tmp_path / "gone")]))


def _without_preamble(file):
    return file.read_bytes()[132:]


def _bare(implicit):
    """The data set alone, without the group that names its transfer syntax."""

    def content(file):
        stream = DicomBytesIO()
        stream.is_little_endian, stream.is_implicit_VR = True, implicit
        write_dataset(stream, dcmread(file))
        return stream.getvalue()

    return content


@pytest.mark.parametrize(
    "content", [_without_preamble, _bare(True), _bare(False)], ids=["meta", "implicit", "explicit"]
)
@pytest.mark.parametrize("count", [1, 5])
def test_files_without_preamble(series, stored_voxels, content, count):
    files = sorted((series / "deep").glob("0*.dcm"))[-count:]
    for file in files:
        file.write_bytes(content(file))
    assert holds_dicom(files[0])
    assert np.array_equal(choose_series(series).read().array, stored_voxels() - 1024)


STRAY = {
    "empty": (b"", "is not DICOM, in spite of its name"),
    "text": (b"not DICOM", "is not DICOM, in spite of its name"),
    "nothing after the preamble": (b"\0" * 128 + b"DICM", "truncated or damaged"),
    "noise after the preamble": (b"\0" * 128 + b"DICM" + bytes(range(256)), "truncated or damaged"),
}


@pytest.mark.parametrize(("content", "reason"), STRAY.values(), ids=STRAY)
def test_a_stray_file_is_named_and_the_others_are_read(series, stored_voxels, content, reason, caplog):
    (series / "deep" / "stray.dcm").write_bytes(content)
    assert np.array_equal(choose_series(series).read().array, stored_voxels() - 1024)
    assert f"{series}: 1 files left out; the first: {series}/deep/stray.dcm: " in caplog.text
    assert reason in caplog.text


def test_a_damaged_image_costs_the_series_of_its_folder_alone(series, write_series, stored_voxels):
    write_series(series / "other", stored_voxels(), SeriesInstanceUID="1.2.3.5")
    file = series / "deep" / "007_1.dcm"
    file.write_bytes(file.read_bytes()[:300])
    assert choose_series(series, "1.2.3.5").shape == (9, 7, 5)
    with pytest.raises(VolumeError, match=r"series 1\.2\.3\.4 .*007_1\.dcm: the file is truncated or damaged"):
        choose_series(series, "1.2.3.4")


def test_links_to_folders_and_files(series, tmp_path, stored_voxels):
    shutil.move(series / "deep", tmp_path / "far")
    (series / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(series)  # a circle
    (series / "again").symlink_to(tmp_path / "far")
    assert np.array_equal(choose_series(series).read().array, stored_voxels() - 1024)
    assert next(file for file, _ in read_headers(series)[0]).folder == series / "again"
    assert len(read_headers(series)[0]) == 5


def test_a_link_to_nothing_is_named(series, caplog):
    (series / "lost.dcm").symlink_to(series / "gone")
    assert len(read_headers(series)[0]) == 5
    assert f"{series}/lost.dcm: a link to nothing" in caplog.text
