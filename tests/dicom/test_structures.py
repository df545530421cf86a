"""RTSTRUCT there and back, against the supplied masks of a real study, and rasterised by matplotlib instead of us."""

from copy import deepcopy

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pydicom import dcmread

from sam2_3dmed.dicom.files import DicomFile
from sam2_3dmed.dicom.structures import drawn_structures, read_structures, structure_names, write_structures
from sam2_3dmed.errors import VolumeError


@pytest.fixture
def file(tmp_path, mask, series, labels):
    path = tmp_path / "mask.rtstruct.dcm"
    write_structures(mask, series, path, labels)
    return path


def test_the_same_voxels_by_ours(file, series, mask, labels):
    read = dict(read_structures(DicomFile(file), dcmread(file), series))
    assert list(read) == list(labels.values())
    for value, name in labels.items():
        assert np.array_equal(read[name], mask.array == value)


def test_the_same_voxels_by_another_rasteriser(file, series, mask, labels):
    """Each contour is put on the slice whose image it names, by that image's own position and orientation."""
    dataset, sources = dcmread(file), series.headers()
    images = [header.SOPInstanceUID for header in sources]
    columns, rows, _ = series.shape
    centres = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1).reshape(-1, 2)
    for item, value in zip(dataset.ROIContourSequence, labels, strict=True):
        read = np.zeros(series.shape, bool)
        for contour in item.get("ContourSequence", []):
            place = images.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            header = sources[place]
            along = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            offsets = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(header.ImagePositionPatient, float)
            corners = offsets @ along.T / np.array(header.PixelSpacing, float)[::-1]
            assert np.abs(offsets @ np.cross(*along)).max() < 1e-3
            closed = Outline(np.vstack([corners, corners[:1]]), closed=True)
            read[:, :, place] ^= closed.contains_points(centres).reshape(columns, rows)
        assert np.array_equal(read, mask.array == value)


def test_it_refers_to_its_source(file, series):
    dataset, sources = dcmread(file), series.headers()
    space = dataset.ReferencedFrameOfReferenceSequence[0]
    referred = space.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == series.uid
    assert {i.ReferencedSOPInstanceUID for i in referred.ContourImageSequence} == {s.SOPInstanceUID for s in sources}
    assert space.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (sources[0].PatientID, sources[0].StudyInstanceUID)
    assert structure_names(dataset) == {1: "left kidney", 2: "tumour", 3: "spleen"}
    numbers = [item.ROINumber for item in dataset.StructureSetROISequence]
    assert [item.ReferencedROINumber for item in dataset.ROIContourSequence] == numbers
    assert [item.ReferencedROINumber for item in dataset.RTROIObservationsSequence] == numbers


def _moved(voxels):
    def move(contour, series):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        step = (np.diag([-1, -1, 1, 1]) @ series.affine)[:3, 2] * voxels
        contour.ContourData = [f"{v:.4f}" for v in (points + step).ravel()]

    return move


BROKEN = {
    "two numbers": (lambda contour: setattr(contour, "ContourData", [1, 2]), "is not a list of points"),
    "no points": (lambda contour: setattr(contour, "ContourData", []), "a contour has no points"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_contours_that_cannot_be_used(file, series, change, message):
    dataset = dcmread(file)
    change(dataset.ROIContourSequence[0].ContourSequence[0])
    with pytest.raises(VolumeError, match=message) as caught:
        list(read_structures(DicomFile(file), dataset, series))
    assert str(caught.value).startswith(f"{file}: region 'left kidney': ")


@pytest.mark.parametrize(
    ("voxels", "how"), [(0.5, "across or between the slices"), (50, "beyond the slices"), (-2, "beyond the slices")]
)
def test_a_contour_on_no_slice_is_left_out(file, series, mask, voxels, how, caplog):
    dataset = dcmread(file)
    _moved(voxels)(dataset.ROIContourSequence[0].ContourSequence[0], series)
    read = dict(read_structures(DicomFile(file), dataset, series))
    assert f"{file}: region 'left kidney': contours left out: 1 {how} of series 1.2.3.4" in caplog.text
    expected = mask.array == 1
    expected[:, :, 1] = False  # the first contour is that of the first slice
    assert np.array_equal(read["left kidney"], expected)


def test_regions_in_another_frame_of_reference_are_left_out(file, series, caplog):
    dataset = dcmread(file)
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "9.9"
    assert list(dict(read_structures(DicomFile(file), dataset, series))) == ["left kidney", "spleen"]
    assert "1 regions in another frame of reference than series 1.2.3.4 left out; the first: tumour" in caplog.text


def test_without_any_frame_of_reference_all_regions_are_read(file, series, labels):
    dataset = dcmread(file)
    del dataset.FrameOfReferenceUID, dataset.ReferencedFrameOfReferenceSequence
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID
    assert list(dict(read_structures(DicomFile(file), dataset, series))) == list(labels.values())


def test_a_contour_that_is_stored_twice_adds_nothing(file, series, mask):
    dataset = dcmread(file)
    contours = dataset.ROIContourSequence[0].ContourSequence
    contours.append(contours[0])
    read = dict(read_structures(DicomFile(file), dataset, series))
    assert np.array_equal(read["left kidney"], mask.array == 1)


def test_the_number_of_points_is_that_of_the_data(file, series, mask):
    dataset = dcmread(file)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.NumberOfContourPoints = 1
    assert drawn_structures(dataset) == {1, 2}
    read = dict(read_structures(DicomFile(file), dataset, series))
    assert np.array_equal(read["left kidney"], mask.array == 1)


def _with_squares(file, series, squares, decimals):
    """The kidney as squares around column and row 5: (slice, half a side in pixels)."""
    dataset = dcmread(file)
    template = dataset.ROIContourSequence[0].ContourSequence[0]
    dataset.ROIContourSequence[0].ContourSequence = contours = []
    for height, half in squares:
        columns, rows = np.array([-1, 1, 1, -1]) * half + 5, np.array([-1, -1, 1, 1]) * half + 5
        voxels = np.stack([columns, rows, np.full(4, height), np.ones(4)])
        points = (np.diag([-1, -1, 1, 1]) @ series.affine @ voxels)[:3].T
        contours.append(deepcopy(template))
        contours[-1].ContourData = [f"{number:.{decimals}f}" for number in points.ravel()]
    dataset.ROIContourSequence[0].ContourSequence = contours
    return dataset


# A square of half a side of 1.4 has 3 x 3 pixel centres in it, one of 2.4 has 5 x 5, one of 3.4 has 7 x 7.
PLANES = {
    "the nearest of three": ([(2.1, 3.4), (2, 2.4), (1.9, 1.4)], 4, 25, 2),
    "with its hole": ([(2.1, 3.4), (2, 2.4), (2, 1.4)], 4, 25 - 9, 1),
    "none on the slice itself": ([(1.85, 3.4), (2.1, 1.4)], 4, 9, 1),
    "two as near": ([(2.1, 1.4), (1.9, 3.4)], 4, 9, 1),
    "almost one plane": ([(2, 2.4), (2.004, 2.35)], 4, 25, 1),
    "one plane": ([(2, 3.4), (2, 2.4)], 4, 49 - 25, 0),
    # The slices are oblique, so that rounding takes points off their plane.
    "one plane, rounded": ([(2, 3.4), (2, 2.4)], 1, 49 - 25, 0),
    "two planes, rounded": ([(2.1, 3.4), (2, 2.4), (2, 1.4)], 2, 25 - 9, 1),
}


@pytest.mark.parametrize(("squares", "decimals", "pixels", "farther"), PLANES.values(), ids=PLANES)
def test_of_several_planes_at_a_slice_the_nearest_counts(file, series, squares, decimals, pixels, farther, caplog):
    dataset = _with_squares(file, series, squares, decimals)
    read = dict(read_structures(DicomFile(file), dataset, series, ["left kidney"]))["left kidney"]
    assert read.sum(axis=(0, 1)).tolist() == [0, 0, pixels, 0, 0, 0]
    line = f"region 'left kidney': contours left out: {farther} farther from a slice than others of series 1.2.3.4"
    assert (line in caplog.text) == bool(farther) == ("left out" in caplog.text)


def test_a_hole_is_no_contour_of_its_own(file):
    """Programs fill each contour by itself. Slices 1 to 3 have one each, although there is a hole in slice 2."""
    assert len(dcmread(file).ROIContourSequence[0].ContourSequence) == 3


def test_points_and_empty_regions_are_not_drawn(file):
    dataset = dcmread(file)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
    dataset.ROIContourSequence[1].ContourSequence = dataset.ROIContourSequence[1].ContourSequence[:1]
    point = dataset.ROIContourSequence[1].ContourSequence[0]
    point.ContourData = point.ContourData[:3]
    assert "ContourSequence" not in dataset.ROIContourSequence[2]
    assert drawn_structures(dataset) == {1}


def test_points_are_no_regions(file, series, mask):
    dataset = dcmread(file)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
    read = dict(read_structures(DicomFile(file), dataset, series, ["left kidney"]))
    assert 0 < read["left kidney"].sum() < (mask.array == 1).sum()


def test_a_folder_that_is_not_there(tmp_path, mask, series, labels):
    with pytest.raises(VolumeError, match=r"a\.dcm: cannot be written"):
        write_structures(mask, series, tmp_path / "gone" / "a.dcm", labels)
