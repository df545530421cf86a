"""Slices with outlines: what the truth says and what the model says, in the radiologist's orientation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import slice_spacing_mm, volume_to_slices
from sam2_3dmed.volume.volume import Volume

# Okabe and Ito's colours, which the colour-blind can tell apart; the truth is always white and dashed.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_TRUTH_COLOUR = "white"


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
    """A row a case: slices through its foreground, the model's outline in colour and the truth's in dashed white.

    Patient's right is on the left, anterior (or superior) is up. path: a PNG, or any format matplotlib writes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(2.4 * num_slices, 2.6 * len(pictures) + 0.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(pictures), num_slices, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        _draw_row(row, picture, labels, preprocessing)
    legend = [Line2D([], [], color=_colour(i), label=name) for i, name in enumerate(labels.values())]
    legend.append(Line2D([], [], color="0.5", linestyle="--", label="truth"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_row(row: Sequence[Any], picture: Picture, labels: Mapping[int, str], preprocessing: Preprocessing) -> None:
    axis = preprocessing.slicing_axis
    image = preprocessing.slices(picture.image)[:, 0]
    truth, prediction = (volume_to_slices(v, axis) for v in (picture.truth, picture.prediction))
    _, height_mm, width_mm = slice_spacing_mm(picture.image, axis)
    for place, index in zip(row, _slices_to_show(truth, prediction, len(row)), strict=True):
        place.imshow(image[index, :, ::-1], cmap="gray", vmin=0, vmax=1, origin="lower", aspect=height_mm / width_mm)
        for number, value in enumerate(labels):
            _outline(place, prediction[index, :, ::-1] == value, _colour(number), "-")
            _outline(place, truth[index, :, ::-1] == value, _TRUTH_COLOUR, "--")
        place.set_axis_off()
        title = f"{picture.title}, slice {index}" if place is row[0] else f"slice {index}"
        place.set_title(title, fontsize=8, loc="left")


def _slices_to_show(truth: NDArray[Any], prediction: NDArray[Any], count: int) -> list[int]:
    """Slices evenly through what truth or prediction call foreground; through everything if neither does."""
    used = np.flatnonzero(((truth > 0) | (prediction > 0)).any(axis=(1, 2)))
    used = used if len(used) else np.arange(len(truth))
    shares = (np.arange(count) + 0.5) / count
    return [int(used[int(share * len(used))]) for share in shares]


def _outline(place: Any, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    if mask.any():
        padded = np.pad(mask.astype(float), 1)  # so that an outline closes at the picture's edge
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        place.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=1, linestyles=style)


def _colour(number: int) -> str:
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]
