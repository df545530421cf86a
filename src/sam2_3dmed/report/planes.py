"""Slices of a case as panels: where the largest error is, which error it is, and what the boundary map says there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import Box, bounding_box
from sam2_3dmed.report.panels import TRUTH_COLOUR, Outline, Panel, all_outlines, class_colour, class_outlines, grey
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import WORLD_AXES, SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume

ERROR_COLOURS = {"false positive": "#D55E00", "false negative": "#56B4E9", "wrong class": "#F0E442"}
_MARGIN_MM = 15.0
_EMPTY_GREY = 0.25


@dataclass(frozen=True)
class CaseVolumes:
    """A case in canonical order: every array is (R, A, S).

    image: in [0, 1]; None if there is none. truth, prediction: class numbers 1..K, 0 background. boundary: uint8 P_bd.
    """

    axis: SlicingAxis
    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    image: NDArray[np.float32] | None
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    boundary: NDArray[np.uint8] | None = None


def case_volumes(
    truth: Volume,
    prediction: Volume,
    labels: Mapping[int, str],
    preprocessing: Preprocessing,
    image: Volume | None = None,
    boundary: Volume | None = None,
) -> CaseVolumes:
    """Bring the volumes of a case, all on one grid, to canonical order; only the image's first channel is kept."""
    axis = preprocessing.slicing_axis
    true, predicted = (
        _canonical(volume_to_slices(class_numbers(volume, labels), axis), axis) for volume in (truth, prediction)
    )
    return CaseVolumes(
        axis,
        labels,
        truth.canonical_spacing_mm,
        None if image is None else _canonical(preprocessing.slices(image)[:, 0], axis),
        true,
        predicted,
        None if boundary is None else _canonical(volume_to_slices(boundary, axis), axis),
    )


def class_numbers(mask: Volume, labels: Mapping[int, str]) -> Volume:
    """A mask of label values as class numbers 1..K, in the order of `labels`."""
    numbers = np.zeros(mask.array.shape, dtype=np.uint8)
    for number, value in enumerate(labels, start=1):
        numbers[mask.array == value] = number
    return mask.with_array(numbers)


def _canonical(slices: NDArray[Any], axis: SlicingAxis) -> NDArray[Any]:
    return np.moveaxis(slices, (0, 1, 2), WORLD_AXES[axis])


def largest_error(case: CaseVolumes) -> tuple[int, int, int]:
    """The place (R, A, S) in the middle of the widest wrong patch of the slice with the most wrong pixels.

    Without an error: of the widest patch of truth; without truth: the middle of the volume.
    """
    from scipy.ndimage import distance_transform_edt

    along, *within = WORLD_AXES[case.axis]
    for wrong in (case.truth != case.prediction, case.truth > 0):
        if wrong.any():
            index = int(wrong.sum(axis=tuple(within)).argmax())
            first, second = sorted(within)
            padded = np.pad(wrong.take(index, axis=along), 1)
            depth = distance_transform_edt(padded, sampling=(case.spacing_mm[first], case.spacing_mm[second]))
            place = np.unravel_index(int(depth.argmax()), depth.shape)
            found = {along: index, first: int(place[0]) - 1, second: int(place[1]) - 1}
            return found[0], found[1], found[2]
    r, a, s = (n // 2 for n in case.truth.shape)
    return r, a, s


def case_panels(case: CaseVolumes) -> list[Panel]:
    """The slice with the most wrong pixels (outlines, errors, boundary map) and two planes that cross it."""
    place, box = largest_error(case), _box_around(case)
    main = _overlay(case, case.axis, place, box)
    panels = [main, error_panel(case, main.title, place, box)]
    if case.boundary is not None:
        panels.append(_boundary_panel(case, main, place, box))
    others: list[SlicingAxis] = [axis for axis in ("axial", "coronal", "sagittal") if axis != case.axis]
    return [*panels, *(_overlay(case, axis, place, box) for axis in others)]


def overlay(case: CaseVolumes, index: int) -> Panel:
    """A whole slice along the slicing axis: the prediction's outlines in colour, the truth's dashed in white."""
    whole = (slice(None), slice(None), slice(None))
    return _overlay(case, case.axis, (index, index, index), whole)


def _overlay(case: CaseVolumes, axis: SlicingAxis, place: tuple[int, int, int], box: Box) -> Panel:
    index = place[WORLD_AXES[axis][0]]
    truth, prediction = (_plane(array, axis, place, box) for array in (case.truth, case.prediction))
    height_mm, width_mm = (case.spacing_mm[world] for world in WORLD_AXES[axis][1:])
    drawn = class_outlines(prediction, len(case.labels))
    outlines = [Outline(lines, class_colour(number)) for number, lines in enumerate(drawn)]
    outlines.append(Outline(all_outlines(truth), TRUTH_COLOUR, dashed=True))
    description = f"{axis} slice {index}: outlines of the prediction in colour, of the truth dashed in white"
    return Panel(f"{axis}, slice {index}", description, _grey(case, axis, place, box), height_mm, width_mm, outlines)


def error_panel(case: CaseVolumes, title: str, place: tuple[int, int, int], box: Box) -> Panel:
    """The same slice with wrong pixels in colour: false positive, false negative, one class for another."""
    axis = case.axis
    truth, prediction = (_plane(array, axis, place, box) for array in (case.truth, case.prediction))
    height_mm, width_mm = (case.spacing_mm[world] for world in WORLD_AXES[axis][1:])
    pixels = _grey(case, axis, place, box)
    pixels = pixels // 2  # darker, so that the colours stand out
    kinds = ((truth == 0) & (prediction > 0), (truth > 0) & (prediction == 0), (truth > 0) & (prediction > 0))
    areas = []
    for (name, colour), kind in zip(ERROR_COLOURS.items(), kinds, strict=True):
        wrong = kind & (truth != prediction)
        pixels[wrong] = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)
        areas.append(f"{name} {int(wrong.sum()) * height_mm * width_mm:.0f} mm²")
    description = f"error map of {title}: {', '.join(areas)}"
    return Panel(f"errors, {title}", description, pixels, height_mm, width_mm)


def _boundary_panel(case: CaseVolumes, main: Panel, place: tuple[int, int, int], box: Box) -> Panel:
    from matplotlib import colormaps

    assert case.boundary is not None
    pixels = colormaps["cividis"](_plane(case.boundary, case.axis, place, box), bytes=True)[..., :3]
    description = f"boundary probability of {main.title}, the truth's outlines dashed in white"
    title = f"P_bd, {main.title}"
    return replace(main, title=title, description=description, pixels=pixels, outlines=main.outlines[-1:])


def _grey(case: CaseVolumes, axis: SlicingAxis, place: tuple[int, int, int], box: Box) -> NDArray[np.uint8]:
    if case.image is not None:
        return grey(_plane(case.image, axis, place, box))
    return grey(np.full(_plane(case.truth, axis, place, box).shape, _EMPTY_GREY))


def _plane(array: NDArray[Any], axis: SlicingAxis, place: tuple[int, int, int], box: Box) -> NDArray[Any]:
    """A slice inside the box as a radiologist sees it: patient's right on the left, front or head up, (H, W)."""
    along, rows, columns = WORLD_AXES[axis]
    plane: NDArray[Any] = array.transpose(along, rows, columns)[place[along]]
    return plane[box[rows], box[columns]][::-1, ::-1]


def _box_around(case: CaseVolumes) -> Box:
    """Truth and prediction with a margin; the whole volume if there is neither."""
    box = []
    for side, size, spacing in zip(
        bounding_box(case.truth, case.prediction), case.truth.shape, case.spacing_mm, strict=True
    ):
        margin = int(np.ceil(_MARGIN_MM / spacing))
        low, high = (side.start - margin, side.stop + margin) if side.stop else (0, size)
        box.append(slice(max(0, low), min(size, high)))
    return box[0], box[1], box[2]


def slice_dice(case: CaseVolumes) -> NDArray[np.float64]:
    """Dice of each class in each slice along the slicing axis, (K, D); NaN where neither mask has the class."""
    within = WORLD_AXES[case.axis][1:]
    scores = []
    for number in range(1, len(case.labels) + 1):
        truth, prediction = case.truth == number, case.prediction == number
        total = truth.sum(axis=within) + prediction.sum(axis=within)
        common = (truth & prediction).sum(axis=within)
        scores.append(np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan))
    return np.array(scores)
