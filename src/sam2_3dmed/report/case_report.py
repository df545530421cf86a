"""The pictures of one case: slices, Dice along the axis, relative positions, surfaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, read_case
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.report import charts
from sam2_3dmed.report.charts import Chart
from sam2_3dmed.report.contents import CaseEntry
from sam2_3dmed.report.panels import Panel, class_colour, panel_rows
from sam2_3dmed.report.planes import ERROR_COLOURS, case_panels, case_volumes, largest_error, slice_dice
from sam2_3dmed.report.surfaces import Mesh, bounds, render, surface_meshes
from sam2_3dmed.volume.files import require_same_grid
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.slices import WORLD_AXES
from sam2_3dmed.volume.volume import Volume

_STILL_PIXELS = 360


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
    image, truth, prediction = _read(entry, plan.labels)
    extra = auxiliary(entry, image) if image is not None else None
    boundary = extra.boundary if extra else None
    case = case_volumes(truth, prediction, plan.labels, plan.preprocessing, image, boundary)
    panels = case_panels(case)
    slices = panel_rows([panels], plan.labels, [f"{rank}: {entry.name}"], ERROR_COLOURS)
    charts.save_figure(slices, figures, f"slices_{rank}")
    shown = largest_error(case)[WORLD_AXES[case.axis][0]]
    title = f"Dice along the axis ({case.axis})"
    dice = charts.slice_dice_chart(title, slice_dice(case), list(plan.labels.values()), shown)
    text = f"Dice of each {case.axis} slice of {entry.name}"
    drawn = [Chart(text, charts.save_figure(dice, figures, f"dice_{rank}"))]
    if extra and extra.positions:
        drawn.append(_positions(extra, entry.name, figures, rank))
    return CaseReport(rank, entry.name, panels, drawn, _surfaces(truth, prediction, plan.labels, max_triangles))


def _read(entry: CaseEntry, labels: Mapping[int, str]) -> tuple[Volume | None, Volume, Volume]:
    assert entry.truth is not None
    assert entry.prediction is not None
    prediction = read_label(entry.prediction, labels)
    if entry.images:
        image, truth = read_case(Case(entry.name, entry.images, entry.truth), labels)
    else:
        image, truth = None, read_label(entry.truth, labels)
    if truth is None:
        raise VolumeError(f"{entry.name}: has no label")
    require_same_grid(truth, entry.truth, prediction, entry.prediction)
    return image, truth, prediction


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


def _surfaces(truth: Volume, prediction: Volume, labels: Mapping[int, str], max_triangles: int) -> list[Surfaces]:
    surfaces = []
    for number, (value, label) in enumerate(labels.items()):
        meshes = surface_meshes(truth.array == value, prediction.array == value, truth.affine, max_triangles)
        surfaces.append(Surfaces(label, class_colour(number), *meshes))
    return surfaces


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
