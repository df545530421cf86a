"""DICOM-SEG there and back, and read by the standard alone: pydicom's elements, bit by bit, and none of our code."""

import numpy as np
import pytest
from pydicom import dcmread

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.files import DicomFile
from sam2_3dmed.dicom.segmentation import read_segments, segment_codes, segment_names, write_segmentation
from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume


@pytest.fixture
def file(tmp_path, mask, series, labels):
    path = tmp_path / "mask.seg.dcm"
    write_segmentation(mask, series, path, labels, {"left kidney": Code("18639004", "SCT", "Left kidney")})
    return path


def by_the_standard(path, series):
    """Segment number -> mask, each stored slice put where its own position says."""
    dataset = dcmread(path)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    size = dataset.Rows * dataset.Columns
    masks = {item.SegmentNumber: np.zeros(series.shape, bool) for item in dataset.SegmentSequence}
    heights = [tuple(np.round(header.ImagePositionPatient, 3)) for header in series.headers()]
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        place = heights.index(tuple(np.round(group.PlanePositionSequence[0].ImagePositionPatient, 3)))
        pixels = bits[number * size : (number + 1) * size].reshape(dataset.Rows, dataset.Columns)
        owner = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[owner][:, :, place] = pixels.T == 1
    return masks


def test_the_same_voxels_by_the_standard(file, series, mask, labels):
    masks = by_the_standard(file, series)
    for number, value in enumerate(labels, start=1):
        assert np.array_equal(masks[number], mask.array == value)


def test_the_same_voxels_by_ours_with_empty_slices_and_classes(file, series, mask, labels):
    read = dict(read_segments(DicomFile(file), dcmread(file), series))
    assert list(read) == list(labels.values())
    for value, name in labels.items():
        assert np.array_equal(read[name], mask.array == value)


def test_slices_that_end_within_a_byte(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "odd", stored_voxels((9, 7, 5)))
    series = choose_series(tmp_path / "odd")
    array = (np.random.default_rng(1).random(series.shape) < 0.5).astype(np.uint8)
    write_segmentation(Volume(array, series.affine), series, tmp_path / "a.dcm", {1: "a"}, {})
    ((_, mask),) = read_segments(DicomFile(tmp_path), dcmread(tmp_path / "a.dcm"), series)
    assert np.array_equal(mask, array == 1)


def test_truncated_pixels(file, series):
    dataset = dcmread(file)
    dataset.PixelData = dataset.PixelData[:4]
    with pytest.raises(VolumeError, match="its pixels are truncated or damaged"):
        list(read_segments(DicomFile(file), dataset, series))


def test_only_what_is_wanted(file, series):
    assert [name for name, _ in read_segments(DicomFile(file), dcmread(file), series, ["tumour"])] == ["tumour"]


def test_it_refers_to_its_source(file, series):
    dataset, sources = dcmread(file), series.headers()
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    named = {item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named == {header.SOPInstanceUID for header in sources}
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (sources[0].PatientID, sources[0].StudyInstanceUID)
    assert dataset.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert dataset.SeriesInstanceUID != series.uid


def test_names_and_codes(file):
    dataset = dcmread(file)
    assert segment_names(dataset) == {1: "left kidney", 2: "tumour", 3: "spleen"}
    codes = segment_codes(dataset)
    assert codes["left kidney"] == Code("18639004", "SCT", "Left kidney")
    assert codes["spleen"].value == "78961009"


def test_a_mask_without_anything_in_it(tmp_path, mask, series, labels):
    empty = mask.with_array(np.zeros_like(mask.array))
    write_segmentation(empty, series, tmp_path / "empty.dcm", labels, {})
    read = dict(read_segments(DicomFile(tmp_path), dcmread(tmp_path / "empty.dcm"), series))
    assert [found.any() for found in read.values()] == [False] * 3


def test_a_mirrored_and_reordered_one(tmp_path, write_series, stored_voxels, series, mask, labels):
    """Stored on the same voxels, but with rows that run the other way, as other programs may."""
    write_segmentation(mask, series, tmp_path / "a.dcm", labels, {})
    dataset = dcmread(tmp_path / "a.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    turned = shared.PlaneOrientationSequence[0]
    rows = np.array(turned.ImageOrientationPatient[3:])
    turned.ImageOrientationPatient = [*turned.ImageOrientationPatient[:3], *(-rows)]
    step = shared.PixelMeasuresSequence[0].PixelSpacing[0] * (dataset.Rows - 1)
    stored = dataset.pixel_array[:, ::-1]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = [f"{v:.9f}" for v in np.array(place.ImagePositionPatient) + step * rows]
    bits = np.packbits(stored.ravel(), bitorder="little").tobytes()
    dataset.PixelData = bits + b"\0" * (len(bits) % 2)
    read = dict(read_segments(DicomFile(tmp_path), dataset, series))
    assert np.array_equal(read["left kidney"], mask.array == 1)


def test_of_another_grid(tmp_path, write_series, stored_voxels, file):
    write_series(tmp_path / "other", stored_voxels((12, 10, 6)), spacing_mm=(0.8, 0.5, 2))
    with pytest.raises(VolumeError, match=r"its voxels are not those of series 1\.2\.3\.4"):
        list(read_segments(DicomFile(file), dcmread(file), choose_series(tmp_path / "other")))


def test_of_a_larger_series(tmp_path, write_series, stored_voxels, mask, series, labels, file):
    smaller = choose_series(tmp_path / "series")
    object.__setattr__(smaller, "planes", series.planes[:3])
    with pytest.raises(VolumeError, match="it reaches beyond series"):
        list(read_segments(DicomFile(file), dcmread(file), smaller))


def test_fractional_counts_from_a_half(file, series):
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    certain = np.zeros(series.shape[::-1], np.float32)
    certain[1, 2, 3], certain[1, 2, 4] = 0.49, 0.51
    description = SegmentDescription(1, "a", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
    dataset = Segmentation(
        series.headers(),
        certain,
        "FRACTIONAL",
        [description],
        generate_uid(),
        9,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "0",
    )
    ((_, mask),) = read_segments(DicomFile(file), dataset, series)
    assert np.argwhere(mask).tolist() == [[4, 2, 1]]


def test_a_folder_that_is_not_there(tmp_path, mask, series, labels):
    with pytest.raises(VolumeError, match=r"a\.dcm: cannot be written"):
        write_segmentation(mask, series, tmp_path / "gone" / "a.dcm", labels, {})
