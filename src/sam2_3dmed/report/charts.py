"""Charts for the page, drawn with matplotlib small enough for a phone."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.report.panels import CLASS_COLOURS, class_colour
from sam2_3dmed.volume.label import in_pictures

_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "sam2-3dmed",  # the same figure gives the same file
    "lines.linewidth": 1.5,
}
_STRIP_WIDTH = 0.25
_LONGEST_NAME = 100
_MARKERS = "os^D"  # when the colours begin anew


@dataclass(frozen=True)
class Chart:
    """A figure for the page.

    Attributes:
        text: The caption and alternative text.
        wide: Too wide for a phone, which scrolls it.
    """

    text: str
    svg: str
    wide: bool = False

    @property
    def address(self) -> str:
        """The SVG as a data: address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


Slabs = Sequence[tuple[Sequence[int], NDArray[np.floating]]]
"""For each slab its slices in the order of the network's input, and the predicted relative positions P_pos, (D, D)."""


def save_figure(figure: Any, folder: Path, name: str) -> str:
    """Write NAME.svg and NAME.png into `folder`, which is made if it is missing; return the text of the SVG.

    Characters of the name that a file name cannot hold become _, so that no figure lies elsewhere.
    """
    name = re.sub(r"[^\w.+-]+", "_", name)[:_LONGEST_NAME]
    contents = {}
    with rc_context(_STYLE):
        figure.get_layout_engine().execute(figure)  # once for both files
        figure.set_layout_engine(None)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=200, metadata=metadata)
            contents[ending] = buffer.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, content in contents.items():
            with replacing(folder / f"{name}.{ending}") as file:
                file.write(content)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return contents["svg"].decode("utf-8")


def lines_chart(
    title: str, steps: Sequence[float], series: Mapping[str, Sequence[float | None]], *, logarithmic: bool = False
) -> Any:
    """A line for each series over epochs; missing values are bridged."""
    with _chart(title) as (figure, axes):
        for number, (name, values) in enumerate(series.items()):
            known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            marker = "o" if len(known) < 20 else None
            axes.plot(
                *zip(*known, strict=True),
                color=_line_colour(number),
                label=in_pictures(name),
                marker=marker,
                markersize=3,
            )
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                set_formatter(lambda value, _: f"{value:g}")
        axes.legend()
    return figure


def distribution_chart(title: str, values: Mapping[str, Sequence[float | None]], unit: str | None) -> Any:
    """For each class a box (quartiles, whiskers to 1.5 times their distance) and a dot for each case."""
    with _chart(title) as (figure, axes):
        for place, given in enumerate(values.values()):
            known = np.array([value for value in given if value is not None], dtype=float)
            known = known[np.isfinite(known)]
            median = {"color": "black", "linewidth": 1.5}
            axes.boxplot(known, positions=[place], widths=0.55, showfliers=False, medianprops=median)
            # Side by side by rank: the picture is the same each time, and dots of equal value do not hide each other.
            shift = ((np.arange(known.size) * 0.618) % 1 - 0.5) * 2 * _STRIP_WIDTH
            dots = {"s": 9, "color": _line_colour(place), "alpha": 0.75, "linewidths": 0, "zorder": 3}
            axes.scatter(place + shift, np.sort(known), **dots)
        axes.set_xticks(range(len(values)), list(map(in_pictures, values)))
        axes.set_ylabel(in_pictures(unit or ""))
    return figure


def cost_chart(
    title: str,
    points: Mapping[str, tuple[float, float, tuple[float, float] | None, float | None]],
    cost: str,
    accuracy: str,
) -> Any:
    """A dot for each system, with an area that grows with its parameters; the best is at the top left.

    points: name -> cost, accuracy, its interval, parameters. cost, accuracy: labels of the axes.
    """
    largest = max((parameters or 0.0 for *_, parameters in points.values()), default=0.0) or 1.0
    with _chart(title, width=6.4) as (figure, axes):
        for number, (name, (x, y, interval, parameters)) in enumerate(points.items()):
            colour, marker = _line_colour(number), _MARKERS[number // len(CLASS_COLOURS) % len(_MARKERS)]
            if interval:
                axes.vlines(x, *interval, color=colour, linewidth=1, alpha=0.6)
            label = in_pictures(name) if parameters is None else f"{in_pictures(name)} ({parameters / 1e6:.3g} M)"
            size = 12 + 150 * (parameters or 0.0) / largest
            axes.scatter([x], [y], s=size, color=colour, marker=marker, alpha=0.85, linewidths=0, label=label, zorder=3)
        axes.set_xscale("log")
        axes.set(xlabel=cost, ylabel=accuracy)
        legend = figure.legend(loc="outside right center")
        for dot in legend.legend_handles:
            dot.set_sizes([25])
    return figure


def slice_dice_chart(title: str, scores: Floats, names: Sequence[str], marked: int) -> Any:
    """(K, D) Dice of each class in each slice, with gaps where it is undefined. marked: the slice of the panels."""
    with _chart(title) as (figure, axes):
        for number, (name, line) in enumerate(zip(names, scores, strict=True)):
            axes.plot(line, color=class_colour(number), label=in_pictures(name), marker="o", markersize=2.5)
        axes.axvline(marked, color="0.6", linestyle=":", linewidth=1, label="slice shown")
        axes.set(xlabel="slice", ylabel="Dice", ylim=(-0.03, 1.03))
        axes.legend()
    return figure


def positions_chart(title: str, slabs: Slabs) -> Any:
    """The mean predicted matrix of relative positions beside the true one, and prediction against truth."""
    orders = [np.argsort(slices) for slices, _ in slabs]
    ordered = [matrix[np.ix_(order, order)] for order, (_, matrix) in zip(orders, slabs, strict=True)]
    mean = np.mean(ordered, axis=0)
    depth = len(mean)
    truth = _offsets(range(depth))
    with _chart(title, width=7.2, columns=3) as (figure, axes):
        for place, matrix, name in ((axes[0], truth, "true"), (axes[1], mean, "predicted, mean of slabs")):
            picture = place.imshow(matrix, cmap="PuOr", vmin=1 - depth, vmax=depth - 1)
            place.set(title=name, xlabel="slice j", ylabel="slice i")
        figure.colorbar(picture, ax=axes[:2], label="slices from i to j", shrink=0.8)
        offsets = np.arange(1 - depth, depth)
        predicted = [np.concatenate([m[truth == offset] for m in ordered]) for offset in offsets]
        low, middle, high = (np.array([np.percentile(p, q) for p in predicted]) for q in (10, 50, 90))
        axes[2].plot(offsets, offsets, color="0.6", linestyle="--", label="truth")
        axes[2].fill_between(offsets, low, high, color=class_colour(1), alpha=0.35, linewidth=0, label="80% of pairs")
        axes[2].plot(offsets, middle, color=class_colour(6), marker="o", markersize=3, label="median")
        axes[2].set(title="pair by pair", xlabel="true offset in slices", ylabel="predicted offset")
        axes[2].legend()
    return figure


def position_errors(slabs: Slabs) -> tuple[float, float]:
    """The mean absolute error over pairs of slices, and the error of predicting 0; in slices."""
    others = ~np.eye(len(slabs[0][0]), dtype=bool)
    truth = [_offsets(slices)[others] for slices, _ in slabs]
    predicted = [matrix[others] for _, matrix in slabs]
    return float(np.abs(np.subtract(predicted, truth)).mean()), float(np.abs(truth).mean())


def _offsets(slices: Sequence[int]) -> NDArray[np.int64]:
    """(D, D): the true relative positions, from slice i to slice j."""
    return np.subtract.outer(slices, slices).T


def pictures_chart(title: str, pictures: Mapping[str, NDArray[np.uint8]], limit_mm: float) -> Any:
    """Pictures of surfaces, (H, W, 3) uint8, side by side, with the colour scale of distances."""
    with _chart(title, width=7.2, columns=len(pictures)) as (figure, axes):
        for place, (name, picture) in zip(axes, pictures.items(), strict=True):
            place.imshow(picture, interpolation="none")
            place.set_title(name)
            place.set_axis_off()
        scale = ScalarMappable(Normalize(0, limit_mm), cmap=distance_map())
        figure.colorbar(scale, ax=axes, label="mm", shrink=0.8, extend="max")
    return figure


def distance_map() -> Colormap:
    """The colour map of distances: cividis without its darkest part, in which shading is invisible."""
    return ListedColormap(colormaps["cividis"](np.linspace(0.25, 1, 256)))


def _line_colour(number: int) -> str:
    """The colour of a class for lines on white, where yellow is too faint."""
    colour = class_colour(number)
    return "#000000" if colour == "#F0E442" else colour


@contextmanager
def _chart(title: str, width: float = 3.6, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure with axes to fill in the report's style."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, 2.6), layout="constrained", facecolor="white")
        axes = figure.subplots(1, columns)
        if columns == 1:
            axes.set_title(in_pictures(title))
        else:
            figure.suptitle(in_pictures(title), fontsize=9, x=0.01, ha="left")
        yield figure, axes
