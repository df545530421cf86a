"""DICOM-SEG there and back, and read by the standard alone: pydicom's elements, bit by bit, and none of our code."""

import numpy as np
import pytest
from pydicom import dcmread

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.files import DicomFile
from sam2_3dmed.dicom.segmentation import (
    drawn_segments,
    read_segments,
    segment_codes,
    segment_names,
    write_segmentation,
)
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


def test_of_other_slices(tmp_path, write_series, stored_voxels, file):
    write_series(tmp_path / "other", stored_voxels((12, 10, 6)), spacing_mm=(0.75, 0.5, 2.5))
    with pytest.raises(VolumeError, match=r"its voxels are not those of series 1\.2\.3\.4"):
        list(read_segments(DicomFile(file), dcmread(file), choose_series(tmp_path / "other")))


def test_of_another_frame_of_reference(series, file):
    dataset = dcmread(file)
    dataset.FrameOfReferenceUID = "9.9"
    with pytest.raises(VolumeError, match="lies in another frame of reference than series"):
        list(read_segments(DicomFile(file), dataset, series))


def test_what_lies_beyond_the_series_is_left_out(mask, series, file, caplog):
    object.__setattr__(series, "planes", series.planes[:3])
    read = dict(read_segments(DicomFile(file), dcmread(file), series))
    assert np.array_equal(read["left kidney"], mask.array[:, :, :3] == 1)
    assert "42 pixels beyond series" in caplog.text  # 36 of the kidney's last slice, 6 of the tumour's


def test_wholly_beyond_the_series(series, file):
    dataset = dcmread(file)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        step = (np.diag([-1, -1, 1, 1]) @ series.affine)[:3, 2] * 50
        place.ImagePositionPatient = [f"{v:.9f}" for v in np.array(place.ImagePositionPatient) + step]
    with pytest.raises(VolumeError, match="it lies wholly beyond series"):
        list(read_segments(DicomFile(file), dataset, series))


@pytest.mark.parametrize("rounded", ["series", "mask"])
def test_rounded_slice_positions(tmp_path, write_series, stored_voxels, rounded):
    """Thin slices of 0.625 mm, in headers of one decimal: 0, 0.6, 1.2, 1.9, 2.5."""
    short = {"each": lambda z: {"ImagePositionPatient": [10, -20, round(30 + 0.625 * z, 1)]}}
    thin = {"spacing_mm": (0.75, 0.5, 0.625)}
    write_series(tmp_path / "series", stored_voxels(), **thin, **(short if rounded == "series" else {}))
    write_series(tmp_path / "source", stored_voxels(), **thin, **short)
    source, series = choose_series(tmp_path / "source"), choose_series(tmp_path / "series")
    array = (stored_voxels() > 1000).astype(np.uint8)
    write_segmentation(Volume(array, source.affine), source, tmp_path / "a.dcm", {1: "a"}, {})
    ((_, mask),) = read_segments(DicomFile(tmp_path / "a.dcm"), dcmread(tmp_path / "a.dcm"), series)
    assert np.array_equal(mask, array == 1)


@pytest.mark.parametrize("factor", [2, 3])
def test_of_another_resolution_within_the_slices(tmp_path, write_series, stored_voxels, factor, caplog):
    """Pixels `factor` times as large and as fine, with the same edges; SimpleITK resamples by itself."""
    import SimpleITK as sitk  # noqa: N813

    shapes = {"fine": (6 * factor, 6 * factor, 4), "coarse": (6, 6, 4)}
    made = {}
    for name, shape in shapes.items():
        step = 1.0 if name == "fine" else float(factor)
        write_series(tmp_path / name, stored_voxels(shape), spacing_mm=(step, step, 2), origin=(step / 2, step / 2, 0))
        made[name] = choose_series(tmp_path / name)
    for source, target in (("fine", "coarse"), ("coarse", "fine")):
        array = (stored_voxels(shapes[source]) > 1000).astype(np.uint8)
        path = tmp_path / f"{source}.dcm"
        write_segmentation(Volume(array, made[source].affine), made[source], path, {1: "a"}, {})
        ((_, mask),) = read_segments(DicomFile(path), dcmread(path), made[target])
        if (source, factor) == ("fine", 2):
            # A centre between four fine pixels takes the one after it.
            expected = array[1::2, 1::2] == 1
        else:
            images = []
            for name in (source, target):
                image = sitk.GetImageFromArray(array.T if name == source else np.zeros(shapes[target][::-1], np.uint8))
                step = 1.0 if name == "fine" else float(factor)
                image.SetSpacing((step, step, 2))
                image.SetOrigin((step / 2, step / 2, 0))
                images.append(image)
            other = sitk.Resample(*images, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
            expected = sitk.GetArrayFromImage(other).T == 1
        assert np.array_equal(mask, expected)
        assert "4 slices are resampled to series" in caplog.text


def _label_map(series, array):
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    described = [SegmentDescription(n, f"organ {n}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL") for n in (1, 2)]
    made = ("maker", "model", "1", "0")
    return Segmentation(series.headers(), array.T, "LABELMAP", described, generate_uid(), 9, generate_uid(), 1, *made)


@pytest.mark.parametrize("padding", [0, None])
def test_the_background_of_a_label_map_is_no_segment(file, series, padding):
    array = (np.indices(series.shape).sum(axis=0) % 3).astype(np.uint8)
    dataset = _label_map(series, array)
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [0, 1, 2]
    if padding is None:
        del dataset.PixelPaddingValue
        dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "1"
    read = dict(read_segments(DicomFile(file), dataset, series))
    assert list(read) == ["organ 1", "organ 2"]
    for number in (1, 2):
        assert np.array_equal(read[f"organ {number}"], array == number)


def test_the_padding_of_a_label_map_names_the_background(file, series):
    """Here it is 2. Segment 0 stays the background as long as its code says so, and is one to read otherwise."""
    array = (np.indices(series.shape).sum(axis=0) % 3).astype(np.uint8)
    dataset = _label_map(series, array)
    dataset.PixelPaddingValue = 2
    assert segment_names(dataset) == {1: "organ 1"}
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "1"
    read = dict(read_segments(DicomFile(file), dataset, series))
    assert np.array_equal(read["Background"], array == 0)


def test_segments_without_a_slice_are_not_drawn(tmp_path, mask, series, labels):
    without = mask.with_array(np.where(mask.array == 3, 0, mask.array))
    write_segmentation(without, series, tmp_path / "a.dcm", labels, {})
    assert drawn_segments(dcmread(tmp_path / "a.dcm")) == {1}


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
