"""Masks of de-identified series, and names in any script, as pydicom reads them."""

import logging

import numpy as np
import pytest
from pydicom import dcmread

from sam2_3dmed.dicom.files import DicomFile
from sam2_3dmed.dicom.segmentation import read_segments, segment_names, write_segmentation
from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.dicom.structures import read_structures, structure_names, write_structures
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.volume.volume import Volume

WRITERS = {
    "dicom-seg": (lambda *a: write_segmentation(*a, {}), read_segments, segment_names),
    "rtstruct": (write_structures, read_structures, structure_names),
}
MAY_BE_ABSENT = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SliceThickness"),
    *("StudyInstanceUID", "FrameOfReferenceUID"),
]
LONG = "a" * 62  # of the 64 characters of a name
CUT = {
    "equal when cut": ([LONG + "bcd", LONG + "bce", LONG + "bcf"], [LONG + "bc", LONG + " 2", LONG + " 3"]),
    "equal without backslashes": (["a\\b", "a/b"], ["a/b", "a/b 2"]),
    "equal but for spaces at the end": (["a", "a "], ["a", "a 2"]),
    "of 64 characters": ([LONG + "bc", LONG + "bd"], [LONG + "bc", LONG + "bd"]),
}
NAMES = {1: "L\u00e4sion", 2: "\u816b\u760d", 3: "a\\b"}


def written(series, path, name, labels):
    array = np.zeros(series.shape, np.uint8)
    array[1:4, 1:4, 1:3] = 1
    array[5:8, 1:4, 2] = 2
    WRITERS[name][0](Volume(array, series.affine), series, path, labels)
    return array, dcmread(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("absent", [[keyword] for keyword in MAY_BE_ABSENT] + [MAY_BE_ABSENT], ids=lambda a: a[0])
def test_what_de_identification_takes_away(tmp_path, write_series, stored_voxels, name, absent):
    write_series(tmp_path / "ct", stored_voxels(), **dict.fromkeys(absent))
    series = choose_series(tmp_path / "ct")
    array, dataset = written(series, tmp_path / "mask.dcm", name, {1: "a", 2: "b"})
    read = dict(WRITERS[name][1](DicomFile(tmp_path / "mask.dcm"), dataset, series))
    assert np.array_equal(read["a"], array == 1)
    for keyword in set(absent) - {"SliceThickness", "PositionReferenceIndicator"}:
        assert keyword in dataset or keyword == "FrameOfReferenceUID"
    assert dataset.StudyInstanceUID


@pytest.mark.parametrize("name", WRITERS)
def test_values_that_the_standard_does_not_allow_are_written_empty(tmp_path, write_series, stored_voxels, name):
    write_series(tmp_path / "ct", stored_voxels(), PatientSex="W")
    for file in (tmp_path / "ct").iterdir():
        file.write_bytes(file.read_bytes().replace(b"20200101", b"20201301"))
    _, dataset = written(choose_series(tmp_path / "ct"), tmp_path / "mask.dcm", name, {1: "a", 2: "b"})
    assert (dataset.PatientSex, dataset.StudyDate) == ("", "")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_uid_that_is_made_up_is_named_before_and_stays_the_same(
    tmp_path, write_series, stored_voxels, name, keyword, caplog
):
    write_series(tmp_path / "ct", stored_voxels(), **{keyword: None})
    series = choose_series(tmp_path / "ct")
    with caplog.at_level(logging.WARNING):
        MaskFormat(name).require(series)
    assert f"series 1.2.3.4 has no {keyword}" in caplog.text
    one, two = (written(series, tmp_path / "mask.dcm", name, {1: "a", 2: "b"})[1] for _ in range(2))
    assert one[keyword].value == two[keyword].value


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("keyword", ["SeriesInstanceUID"])
def test_without_what_cannot_be_made_up_it_is_refused_before(tmp_path, write_series, stored_voxels, name, keyword):
    write_series(tmp_path / "ct", stored_voxels(), **{keyword: None})
    series = choose_series(tmp_path / "ct")
    assert series.read().shape == (9, 7, 5)
    with pytest.raises(VolumeError, match=f"an image has no {keyword}, so no DICOM-SEG or RTSTRUCT can refer to it"):
        MaskFormat(name).require(series)
    with pytest.raises(DataError, match="refers to a DICOM series, which this input is not"):
        MaskFormat(name).require(None)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("characters", "patient"),
    [("ISO_IR 100", "M\u00fcller^J\u00f6rg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce")],
)
def test_names_keep_their_characters(tmp_path, write_series, stored_voxels, name, characters, patient):
    write_series(tmp_path / "ct", stored_voxels(), SpecificCharacterSet=characters, PatientName=patient)
    _, dataset = written(choose_series(tmp_path / "ct"), tmp_path / "mask.dcm", name, NAMES)
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == patient
    assert WRITERS[name][2](dataset) == {1: NAMES[1], 2: NAMES[2], 3: "a/b"}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("names", "expected"), CUT.values(), ids=CUT)
def test_different_names_stay_different(tmp_path, write_series, stored_voxels, name, names, expected):
    write_series(tmp_path / "ct", stored_voxels())
    _, dataset = written(choose_series(tmp_path / "ct"), tmp_path / "mask.dcm", name, dict(enumerate(names, start=1)))
    assert list(WRITERS[name][2](dataset).values()) == expected
