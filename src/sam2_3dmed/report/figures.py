"""Figures of slices with the outlines of truth and prediction, in the radiologist's orientation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed.report.panels import Panel, class_colour, draw_panel
from sam2_3dmed.report.planes import CaseVolumes, case_volumes, overlay
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import WORLD_AXES
from sam2_3dmed.volume.volume import Volume

_TRUTH_IN_LEGEND = "0.5"  # the truth is white on a slice, but white is invisible in a legend on white


@dataclass(frozen=True)
class Picture:
    """A case to draw: image, truth and prediction on one grid, and a title."""

    title: str
    image: Volume
    truth: Volume
    prediction: Volume


def draw_cases(
    pictures: Sequence[Picture],
    labels: Mapping[int, str],
    preprocessing: Preprocessing,
    path: Path,
    num_slices: int = 4,
) -> None:
    """Draw a row for each case: slices with the prediction's outline in colour and the truth's dashed in white.

    The patient's right is on the left, anterior (or superior) is up. path: any format of matplotlib.
    """
    rows = []
    for picture in pictures:
        case = case_volumes(picture.truth, picture.prediction, labels, preprocessing, picture.image)
        rows.append([overlay(case, index) for index in _slices_to_show(case, num_slices)])
    figure = panel_rows(rows, labels, [picture.title for picture in pictures])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def panel_rows(
    rows: Sequence[Sequence[Panel]],
    labels: Mapping[int, str],
    titles: Sequence[str],
    areas: Mapping[str, str] | None = None,
) -> Any:
    """A figure with a row of panels for each title, and a legend below. areas: name -> colour of filled areas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    columns = max(map(len, rows))
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(rows) + 0.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    places = figure.subplots(len(rows), columns, squeeze=False)
    for row, panels, title in zip(places, rows, titles, strict=True):
        for place, panel in zip(row, panels, strict=True):
            draw_panel(place, panel)
        row[0].set_title(f"{title}\n{panels[0].title}", fontsize=8, loc="left")
    legend: list[Any] = [Line2D([], [], color=class_colour(i), label=name) for i, name in enumerate(labels.values())]
    legend.append(Line2D([], [], color=_TRUTH_IN_LEGEND, linestyle="--", label="truth"))
    legend += [Patch(color=colour, label=name) for name, colour in (areas or {}).items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def _slices_to_show(case: CaseVolumes, count: int) -> list[int]:
    """Slices evenly through the foreground of truth or prediction; through the volume if there is none."""
    along, *within = WORLD_AXES[case.axis]
    used = np.flatnonzero(((case.truth > 0) | (case.prediction > 0)).any(axis=tuple(within)))
    used = used if len(used) else np.arange(case.truth.shape[along])
    shares = (np.arange(count) + 0.5) / count
    return [int(used[int(share * len(used))]) for share in shares]
