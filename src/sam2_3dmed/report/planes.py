"""The pictures of a case: slices as a radiologist sees them, Dice along the axis, relative positions, surfaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, read_case
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.masks import Box, Floats, bounding_box
from sam2_3dmed.inference.interface import Auxiliary
from sam2_3dmed.report import charts
from sam2_3dmed.report.charts import Chart
from sam2_3dmed.report.contents import CaseEntry
from sam2_3dmed.report.panels import (
    TRUTH_COLOUR,
    Outline,
    Panel,
    all_outlines,
    class_colour,
    class_outlines,
    grey,
    panel_rows,
)
from sam2_3dmed.report.surfaces import Mesh, bounds, render, surface_meshes
from sam2_3dmed.volume.files import require_same_grid, uncropped
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import WORLD_AXES, SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume

ERROR_COLOURS = {"false positive": "#D55E00", "false negative": "#56B4E9", "wrong class": "#F0E442"}
_MARGIN_MM = 15.0
_EMPTY_GREY = 0.25
_STILL_PIXELS = 360


@dataclass(frozen=True)
class CaseVolumes:
    """A case in canonical order: every array is (R, A, S).

    Attributes:
        image: In [0, 1]; None if there is none.
        truth, prediction: Class numbers 1..K, 0 is background.
        boundary: The boundary map P_bd as uint8; None if there is none.
        shown: The part that panels show.
    """

    axis: SlicingAxis
    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    image: NDArray[np.float32] | None
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    boundary: NDArray[np.uint8] | None = None
    shown: Box = (slice(None), slice(None), slice(None))

    def plane(self, array: NDArray[Any], axis: SlicingAxis, index: int) -> NDArray[Any]:
        """(H, W) of the shown part of a slice: the patient's right is on the left, front or head are up."""
        along, rows, columns = WORLD_AXES[axis]
        plane: NDArray[Any] = array.transpose(along, rows, columns)[index]
        return plane[self.shown[rows], self.shown[columns]][::-1, ::-1]


Picture = tuple[str, Volume | None, Volume, Volume]
"""A title, and the image, truth and prediction of a case on one grid."""


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

    def canonical(slices: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(slices, (0, 1, 2), WORLD_AXES[axis])

    return CaseVolumes(
        axis,
        labels,
        truth.canonical_spacing_mm,
        None if image is None else canonical(preprocessing.slices(image)[:, 0]),
        canonical(volume_to_slices(class_numbers(truth, labels), axis)),
        canonical(volume_to_slices(class_numbers(prediction, labels), axis)),
        None if boundary is None else canonical(volume_to_slices(boundary, axis)),
    )


def class_numbers(mask: Volume, labels: Mapping[int, str]) -> Volume:
    """A mask of label values as class numbers 1..K, in the order of `labels`; a later region covers an earlier one."""
    return mask.with_array(LabelScheme.of(labels).numbers(mask.array).astype(np.uint8))


def largest_error(case: CaseVolumes) -> tuple[int, int, int]:
    """The position (R, A, S) in the middle of the widest wrong patch of the slice with the most wrong pixels.

    Without an error: of the widest patch of truth. Without truth: the middle of the volume.
    """
    along, *within = WORLD_AXES[case.axis]
    for wrong in (case.truth != case.prediction, case.truth > 0):
        if wrong.any():
            index = int(wrong.sum(axis=tuple(within)).argmax())
            first, second = sorted(within)
            padded = np.pad(wrong.take(index, axis=along), 1)
            depth = distance_transform_edt(padded, sampling=(case.spacing_mm[first], case.spacing_mm[second]))
            deepest = np.unravel_index(int(depth.argmax()), depth.shape)
            found = {along: index, first: int(deepest[0]) - 1, second: int(deepest[1]) - 1}
            return found[0], found[1], found[2]
    r, a, s = (n // 2 for n in case.truth.shape)
    return r, a, s


def case_panels(case: CaseVolumes) -> list[Panel]:
    """The slice with the most wrong pixels (outlines, errors, boundary map) and two planes that cross it."""
    position, case = largest_error(case), replace(case, shown=_box_around(case))
    axes: list[SlicingAxis] = [case.axis, *(axis for axis in ("axial", "coronal", "sagittal") if axis != case.axis)]
    main, *others = (overlay(case, position[WORLD_AXES[axis][0]], axis) for axis in axes)
    index = position[WORLD_AXES[case.axis][0]]
    boundary = [] if case.boundary is None else [_boundary_panel(case, case.boundary, main, index)]
    return [main, _error_panel(case, main, index), *boundary, *others]


def overlay(case: CaseVolumes, index: int, axis: SlicingAxis | None = None) -> Panel:
    """A slice along an axis, if none is given the slicing axis, with outlines: the truth's are dashed in white."""
    axis = axis or case.axis
    truth, prediction = (case.plane(array, axis, index) for array in (case.truth, case.prediction))
    image = np.full(truth.shape, _EMPTY_GREY) if case.image is None else case.plane(case.image, axis, index)
    height_mm, width_mm = (case.spacing_mm[world] for world in WORLD_AXES[axis][1:])
    drawn = class_outlines(prediction, len(case.labels))
    outlines = [Outline(lines, class_colour(number)) for number, lines in enumerate(drawn)]
    outlines.append(Outline(all_outlines(truth), TRUTH_COLOUR, dashed=True))
    description = f"{axis} slice {index}: outlines of the prediction in colour, of the truth dashed in white"
    return Panel(f"{axis}, slice {index}", description, grey(image), height_mm, width_mm, outlines)


def _error_panel(case: CaseVolumes, main: Panel, index: int) -> Panel:
    """The same slice with wrong pixels in colour: false positive, false negative, one class for another."""
    truth, prediction = (case.plane(array, case.axis, index) for array in (case.truth, case.prediction))
    pixels = main.pixels // 2  # darker, so that the colours stand out
    kinds = ((truth == 0) & (prediction > 0), (truth > 0) & (prediction == 0), (truth > 0) & (prediction > 0))
    areas = []
    for (name, colour), kind in zip(ERROR_COLOURS.items(), kinds, strict=True):
        wrong = kind & (truth != prediction)
        pixels[wrong] = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)
        areas.append(f"{name} {int(wrong.sum()) * main.height_mm * main.width_mm:.0f} mm²")
    description = f"error map of {main.title}: {', '.join(areas)}"
    return replace(main, title=f"errors, {main.title}", description=description, pixels=pixels, outlines=())


def _boundary_panel(case: CaseVolumes, boundary: NDArray[np.uint8], main: Panel, index: int) -> Panel:
    pixels = colormaps["cividis"](case.plane(boundary, case.axis, index), bytes=True)[..., :3]
    description = f"boundary probability of {main.title}, the truth's outlines dashed in white"
    title = f"P_bd, {main.title}"
    return replace(main, title=title, description=description, pixels=pixels, outlines=main.outlines[-1:])


def _box_around(case: CaseVolumes) -> Box:
    """Truth and prediction with a margin; the whole volume if there is neither."""
    found = bounding_box(case.truth, case.prediction)
    if not found[0].stop:
        return case.shown
    margins = [int(np.ceil(_MARGIN_MM / spacing)) for spacing in case.spacing_mm]
    r, a, s = (slice(max(0, side.start - n), side.stop + n) for side, n in zip(found, margins, strict=True))
    return r, a, s


def slice_dice(case: CaseVolumes) -> Floats:
    """(K, D) Dice of each class in each slice along the slicing axis; NaN where neither mask has the class."""
    within = WORLD_AXES[case.axis][1:]
    scores = []
    for number in range(1, len(case.labels) + 1):
        truth, prediction = case.truth == number, case.prediction == number
        total = truth.sum(axis=within) + prediction.sum(axis=within)
        common = (truth & prediction).sum(axis=within)
        scores.append(np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan))
    return np.array(scores)


def draw_cases(
    pictures: Sequence[Picture],
    labels: Mapping[int, str],
    preprocessing: Preprocessing,
    path: Path,
    num_slices: int = 4,
) -> None:
    """Draw a row for each case: slices evenly through the foreground of truth or prediction, with their outlines.

    path: a file in any format of matplotlib; its folder is made if it is missing.
    """
    rows = []
    for _, image, truth, prediction in pictures:
        case = case_volumes(truth, prediction, labels, preprocessing, image)
        along, *within = WORLD_AXES[case.axis]
        used = np.flatnonzero(((case.truth > 0) | (case.prediction > 0)).any(axis=tuple(within)))
        used = used if len(used) else np.arange(case.truth.shape[along])
        shares = (np.arange(num_slices) + 0.5) / num_slices
        rows.append([overlay(case, int(used[int(share * len(used))])) for share in shares])
    figure = panel_rows(rows, labels, [title for title, *_ in pictures])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


@dataclass(frozen=True)
class Surfaces:
    """The meshes of one class of one case."""

    label: str
    colour: str
    truth: Mesh | None
    prediction: Mesh | None


@dataclass(frozen=True)
class CaseReport:
    """A case on the page.

    Attributes:
        rank: best, median, worst or only.
        score: By the metric that ranks the cases.
        still: Pictures of the surfaces.
    """

    rank: str
    name: str
    panels: Sequence[Panel]
    charts: Sequence[Chart]
    surfaces: Sequence[Surfaces]
    score: float | None = None
    still: Chart | None = None

    @property
    def meshes(self) -> list[Mesh]:
        """Those of all classes, of truth and prediction."""
        return [mesh for surfaces in self.surfaces for mesh in (surfaces.truth, surfaces.prediction) if mesh]


def case_report(
    rank: str,
    entry: CaseEntry,
    plan: Plan,
    figures: Path,
    auxiliary: Callable[[CaseEntry, Volume], Auxiliary | None],
    max_triangles: int,
) -> CaseReport:
    """Draw a case whose masks were found; figures are written into `figures`.

    auxiliary: returns the boundary map and relative positions of a case and its image.
    Raises UserError if a file cannot be used, or the files of the case lie on different grids.
    """
    image, truth, prediction = read_volumes(entry, plan.scheme)
    extra = auxiliary(entry, image) if image is not None else None
    boundary = extra.boundary if extra else None
    parts = plan.scheme.parts
    case = case_volumes(truth, prediction, plan.scheme, plan.preprocessing, image, boundary)
    panels = case_panels(case)
    slices = panel_rows([panels], parts, [f"{rank}: {entry.name}"], ERROR_COLOURS)
    charts.save_figure(slices, figures, f"slices_{rank}")
    shown = largest_error(case)[WORLD_AXES[case.axis][0]]
    title = f"Dice along the axis ({case.axis})"
    dice = charts.slice_dice_chart(title, slice_dice(case), list(parts.values()), shown)
    text = f"Dice of each {case.axis} slice of {entry.name}"
    drawn = [Chart(text, charts.save_figure(dice, figures, f"dice_{rank}"))]
    if extra and extra.positions:
        drawn.append(_positions(extra, entry.name, figures, rank))
    surfaces = []
    for number, (value, label) in enumerate(plan.labels.items()):
        true, predicted = (plan.scheme.holds(mask.array, value) for mask in (truth, prediction))
        meshes = surface_meshes(true, predicted, truth.affine, max_triangles)
        surfaces.append(Surfaces(label, class_colour(number), *meshes))
    return CaseReport(rank, entry.name, panels, drawn, surfaces)


def read_volumes(entry: CaseEntry, labels: Mapping[int, str]) -> tuple[Volume | None, Volume, Volume]:
    """The image, truth and prediction of a case whose masks were found. Raises UserError as `case_report`.

    Both masks are background where the truth is to be ignored.
    """
    scheme = LabelScheme.of(labels)
    assert entry.truth is not None
    assert entry.prediction is not None
    prediction = read_label(entry.prediction, scheme.allowed)
    if entry.images:
        image, truth = read_case(Case(entry.name, entry.images, entry.truth), scheme.allowed)
    else:
        image, truth = None, read_label(entry.truth, scheme.allowed)
    if truth is None:
        raise VolumeError(f"{entry.name}: has no label")
    prediction = uncropped(prediction, entry.prediction, truth)
    require_same_grid(truth, entry.truth, prediction, entry.prediction)
    arrays = scheme.cut(truth.array, prediction.array)
    return image, truth.with_array(arrays[0]), prediction.with_array(arrays[1])


def _positions(extra: Auxiliary, name: str, figures: Path, rank: str) -> Chart:
    # Slabs as long as the first: a shorter one has another matrix.
    depth = len(extra.positions[0].slices)
    slabs = [(slab.slices, slab.relative_position) for slab in extra.positions if len(slab.slices) == depth]
    error, nothing = charts.position_errors(slabs)
    text = (
        f"Relative positions in {name}: mean error {error:.2f} slices over {len(slabs)} slabs of {depth}; "
        f"saying 0 for every pair would give {nothing:.2f}"
    )
    figure = charts.positions_chart("Does SRPP know where a slice is?", slabs)
    return Chart(text, charts.save_figure(figure, figures, f"positions_{rank}"), wide=True)


def distance_limit_mm(reports: Sequence[CaseReport]) -> float:
    """The end of the scale of distances: half of the surfaces have nine tenths of their vertices below it.

    It is 1, 2 or 5 times a power of 10, and at least 1.
    """
    meshes = [mesh.distances_mm for report in reports for mesh in report.meshes]
    reached = [np.percentile(distances_mm, 90) for distances_mm in meshes if np.isfinite(distances_mm).all()]
    middle = max(1.0, float(np.median(reached)) if reached else 0.0)
    power = 10 ** np.floor(np.log10(middle))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= middle * 0.999))


def distance_colours(distances_mm: Floats, limit_mm: float) -> Floats:
    """(n, 3) in [0, 1]: the colours of distances; beyond the limit they have the limit's colour."""
    colours: Floats = charts.distance_map()(np.clip(distances_mm / limit_mm, 0, 1))[:, :3]
    return colours


def still(report: CaseReport, limit_mm: float, figures: Path) -> Chart | None:
    """Truth, prediction, and the prediction coloured by its distance to the truth. Paper: Figures 3 and 8."""
    if not report.meshes:
        return None
    view = bounds(report.meshes)
    truth = [(s.truth, np.array(to_rgb(s.colour))) for s in report.surfaces if s.truth]
    prediction = [(s.prediction, np.array(to_rgb(s.colour))) for s in report.surfaces if s.prediction]
    coloured = [(mesh, distance_colours(mesh.distances_mm, limit_mm)) for mesh, _ in prediction]
    groups = {"truth": truth, "prediction": prediction, "prediction: mm to the truth": coloured}
    pictures = {title: render(group, _STILL_PIXELS, *view) for title, group in groups.items()}
    figure = charts.pictures_chart(report.name, pictures, limit_mm)
    text = f"Surfaces of {report.name}: truth, prediction, and the prediction coloured by its distance to the truth"
    return Chart(text, charts.save_figure(figure, figures, f"surfaces_{report.rank}"), wide=True)
