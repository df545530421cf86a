"""Which slices are shown, what is coloured there, and Dice along the axis, on cases small enough to count."""

import numpy as np
import pytest

from sam2_3dmed.report.panels import TRUTH_COLOUR, WHITEST
from sam2_3dmed.report.planes import (
    ERROR_COLOURS,
    CaseVolumes,
    case_panels,
    case_volumes,
    class_numbers,
    largest_error,
    overlay,
    slice_dice,
)
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.volume import Volume

LABELS = {2: "organ", 7: "tumour"}
SHAPE = (12, 10, 8)


def case(truth=(), prediction=(), axis="axial", spacing_mm=(1.0, 1.0, 1.0), **others) -> CaseVolumes:
    """truth, prediction: (place, class number) pairs that are filled in."""
    arrays = [np.zeros(SHAPE, dtype=np.uint8) for _ in range(2)]
    for array, parts in zip(arrays, (truth, prediction), strict=True):
        for where, number in parts:
            array[where] = number
    return CaseVolumes(axis, LABELS, spacing_mm, others.pop("image", None), *arrays, **others)


def colour(name: str) -> list[int]:
    return list(bytes.fromhex(ERROR_COLOURS[name][1:]))


def count(pixels, rgb) -> int:
    return int((pixels == np.array(rgb)).all(axis=-1).sum())


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_volumes_come_in_canonical_order(axis: str, signs: tuple[int, int, int]) -> None:
    affine = np.diag([*np.array(signs) * (1.0, 2.0, 3.0), 1.0])
    place = tuple(1 if sign > 0 else n - 2 for sign, n in zip(signs, SHAPE, strict=True))
    array = np.zeros(SHAPE, dtype=np.int16)
    array[place] = 7
    mask = Volume(array, affine)
    image = Volume(array.astype(np.float32), affine)
    preprocessing = Preprocessing(axis, (Normalisation("fixed", 0, 7),))
    found = case_volumes(mask, mask, LABELS, preprocessing, image, boundary=mask)
    assert found.spacing_mm == (1, 2, 3)
    for volume, value in ((found.truth, 2), (found.prediction, 2), (found.image, 1.0), (found.boundary, 7)):
        assert volume.shape == SHAPE
        assert np.argwhere(volume).tolist() == [[1, 1, 1]]
        assert volume[1, 1, 1] == value


def test_class_numbers_follow_the_order_of_the_labels() -> None:
    mask = Volume(np.array([[[0, 2, 7]]], dtype=np.uint16), np.eye(4))
    assert class_numbers(mask, LABELS).array.tolist() == [[[0, 1, 2]]]


def test_the_largest_error_is_in_the_middle_of_the_widest_patch_of_the_worst_slice() -> None:
    """Slice 5 has 9 + 1 wrong pixels, slice 2 has 4; the 3 x 3 patch is around (4, 6)."""
    patch = (slice(3, 6), slice(5, 8), 5)
    assert largest_error(case(prediction=[(patch, 1), ((9, 1, 5), 1), ((slice(0, 4), 0, 2), 1)])) == (4, 6, 5)


def test_a_patch_at_the_border_has_its_middle_inside() -> None:
    assert largest_error(case(prediction=[((slice(0, 3), slice(0, 3), 0), 1)])) == (1, 1, 0)


def test_without_an_error_the_truth_is_shown_and_without_truth_the_middle() -> None:
    same = [((slice(2, 5), slice(2, 5), slice(3, 4)), 1)]
    assert largest_error(case(same, same)) == (3, 3, 3)
    assert largest_error(case()) == (6, 5, 4)


def test_errors_are_coloured_and_counted() -> None:
    truth = [((slice(2, 6), 4, 3), 1)]
    prediction = [((slice(4, 6), 4, 3), 2), ((slice(6, 9), 4, 3), 1)]
    errors = case_panels(case(truth, prediction, spacing_mm=(2.0, 3.0, 1.0)))[1]
    assert count(errors.pixels, colour("false positive")) == 3
    assert count(errors.pixels, colour("false negative")) == 2
    assert count(errors.pixels, colour("wrong class")) == 2
    assert errors.description.endswith("false positive 18 mm², false negative 12 mm², wrong class 12 mm²")
    row = np.argwhere((errors.pixels == colour("false positive")).all(axis=-1))
    assert row[:, 1].tolist() == [3, 4, 5]  # R 6 to 8 of 12, with R on the left


def test_the_planes_cross_at_the_largest_error() -> None:
    panels = case_panels(case(prediction=[((3, 6, 5), 1)], axis="coronal"))
    assert [panel.title for panel in panels] == [
        "coronal, slice 6",
        "errors, coronal, slice 6",
        "axial, slice 5",
        "sagittal, slice 3",
    ]


def test_the_boundary_map_is_shown_with_the_truth_alone() -> None:
    boundary = np.zeros(SHAPE, dtype=np.uint8)
    boundary[3, 6, 5] = 255
    panel = case_panels(case(prediction=[((3, 6, 5), 1)], boundary=boundary))[2]
    assert panel.title == "P_bd, axial, slice 5"
    assert count(panel.pixels, panel.pixels[3, 8]) == 1  # A 6 of 10 from above, R 3 of 12 from the right
    assert [outline.colour for outline in panel.outlines] == [TRUTH_COLOUR]


def test_a_large_volume_is_cut_to_what_matters() -> None:
    """15 mm around a voxel at 5 mm: 3 voxels to either side, as far as there are any."""
    panel = case_panels(case(prediction=[((1, 5, 4), 1)], spacing_mm=(5.0, 5.0, 5.0)))[0]
    assert panel.pixels.shape == (7, 5, 3)
    assert (panel.height_mm, panel.width_mm) == (5, 5)


def test_an_overlay_shows_the_image_or_grey() -> None:
    image = np.zeros(SHAPE, dtype=np.float32)
    image[0, 9, 4] = 1
    with_image = overlay(case(image=image), 4)
    assert with_image.pixels[0, -1].tolist() == [round(255 * WHITEST)] * 3  # front is up, right is left
    assert with_image.pixels.sum() == 3 * round(255 * WHITEST)
    assert len(np.unique(overlay(case(), 4).pixels)) == 1


def test_dice_of_a_slice_by_hand() -> None:
    truth = [((slice(0, 4), 0, 2), 1), ((0, 0, 3), 1)]
    prediction = [((slice(2, 4), 0, 2), 1), ((5, 5, 4), 2)]
    scores = slice_dice(case(truth, prediction))
    assert scores.shape == (2, 8)
    assert scores[0, 2] == pytest.approx(2 * 2 / 6)
    assert scores[0, 3] == 0
    assert scores[1, 4] == 0
    assert np.isnan(scores).sum() == 16 - 3
