"""Charts for the page, drawn with matplotlib small enough for a phone."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.report.panels import CLASS_COLOURS, class_colour

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
_MARKERS = "os^D"  # when the colours begin anew


def save_figure(figure: Any, folder: Path, name: str) -> str:
    """Write NAME.svg and NAME.png into `folder`, which is made if it is missing.

    Returns:
        The text of the SVG.

    Raises:
        DataError: A file cannot be written.
    """
    with _style():
        figure.get_layout_engine().execute(figure)  # once for both files
        figure.set_layout_engine(None)
    contents = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            with _style():
                figure.savefig(buffer, format=ending, dpi=200, metadata=metadata)
            contents[ending] = buffer.getvalue()
            with replacing(folder / f"{name}.{ending}") as file:
                file.write(contents[ending])
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return contents["svg"].decode("utf-8")


def lines_chart(
    title: str, steps: Sequence[float], series: Mapping[str, Sequence[float | None]], *, logarithmic: bool = False
) -> Any:
    """Values over epochs, a line each; missing values are bridged."""
    from matplotlib.ticker import LogLocator

    with _chart(title) as (figure, axes):
        for number, (name, values) in enumerate(series.items()):
            known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            marker = "o" if len(known) < 20 else None
            axes.plot(*zip(*known, strict=True), color=_line_colour(number), label=name, marker=marker, markersize=3)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                which(lambda value, _: f"{value:g}")
        axes.legend()
    return figure


def distribution_chart(title: str, values: Mapping[str, Sequence[float | None]], unit: str | None) -> Any:
    """For each class a box (quartiles, whiskers to 1.5 times their distance) and a dot for each case."""
    with _chart(title) as (figure, axes):
        for place, given in enumerate(values.values()):
            known = np.array([value for value in given if value is not None], dtype=float)
            known = known[np.isfinite(known)]
            colour = _line_colour(place)
            median = {"color": "black", "linewidth": 1.5}
            axes.boxplot(known, positions=[place], widths=0.55, showfliers=False, medianprops=median)
            # Side by side by rank, so that the picture is the same each time and dots of equal value do not hide.
            shift = ((np.arange(known.size) * 0.618) % 1 - 0.5) * 2 * _STRIP_WIDTH
            axes.scatter(place + shift, np.sort(known), s=9, color=colour, alpha=0.75, linewidths=0, zorder=3)
        axes.set_xticks(range(len(values)), list(values))
        axes.set_ylabel(unit or "")
    return figure


def cost_chart(
    title: str,
    points: Mapping[str, tuple[float, float, tuple[float, float] | None, float | None]],
    cost: str,
    accuracy: str,
) -> Any:
    """A dot for each system, with an area that grows with its parameters; the best is at the top left.

    Args:
        points: Name -> cost, accuracy, its interval, parameters.
    """
    largest = max((parameters or 0.0 for *_, parameters in points.values()), default=0.0) or 1.0
    with _chart(title, width=6.4) as (figure, axes):
        for number, (name, (x, y, interval, parameters)) in enumerate(points.items()):
            colour, marker = _line_colour(number), _MARKERS[number // len(CLASS_COLOURS) % len(_MARKERS)]
            if interval:
                axes.vlines(x, *interval, color=colour, linewidth=1, alpha=0.6)
            millions = "" if parameters is None else f" ({parameters / 1e6:.3g} M)"
            size = 12 + 150 * (parameters or 0.0) / largest
            label = name + millions
            axes.scatter([x], [y], s=size, color=colour, marker=marker, alpha=0.85, linewidths=0, label=label, zorder=3)
        axes.set_xscale("log")
        axes.set(xlabel=cost, ylabel=accuracy)
        legend = figure.legend(loc="outside right center")
        for dot in legend.legend_handles:
            dot.set_sizes([25])
    return figure


def slice_dice_chart(title: str, scores: NDArray[np.float64], names: Sequence[str], marked: int) -> Any:
    """(K, D) Dice of each class in each slice, with gaps where it is undefined. marked: the slice of the panels."""
    with _chart(title) as (figure, axes):
        for number, (name, line) in enumerate(zip(names, scores, strict=True)):
            axes.plot(line, color=class_colour(number), label=name, marker="o", markersize=2.5)
        axes.axvline(marked, color="0.6", linestyle=":", linewidth=1, label="slice shown")
        axes.set(xlabel="slice", ylabel="Dice", ylim=(-0.03, 1.03))
        axes.legend()
    return figure


def positions_chart(title: str, slabs: Sequence[tuple[Sequence[int], NDArray[np.floating]]]) -> Any:
    """The mean predicted matrix of relative positions beside the true one, and prediction against truth.

    Args:
        slabs: For each its slices in the order of the network's input, and P_pos (D, D).
    """
    ordered = [_ascending(slices, matrix) for slices, matrix in slabs]
    mean = np.mean(ordered, axis=0)
    depth = len(mean)
    truth = np.arange(depth)[None, :] - np.arange(depth)[:, None]
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


def distance_map() -> Any:
    """The colour map of distances: cividis without its darkest part, in which shading is invisible."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["cividis"](np.linspace(0.25, 1, 256)))


def pictures_chart(title: str, pictures: Mapping[str, NDArray[np.uint8]], limit_mm: float) -> Any:
    """Pictures of surfaces, (H, W, 3) uint8, side by side, with the scale of distances that colours them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    with _chart(title, width=7.2, columns=len(pictures)) as (figure, axes):
        for place, (name, picture) in zip(axes, pictures.items(), strict=True):
            place.imshow(picture, interpolation="none")
            place.set_title(name)
            place.set_axis_off()
        scale = ScalarMappable(Normalize(0, limit_mm), cmap=distance_map())
        figure.colorbar(scale, ax=axes, label="mm", shrink=0.8, extend="max")
    return figure


def position_errors(slabs: Sequence[tuple[Sequence[int], NDArray[np.floating]]]) -> tuple[float, float]:
    """The mean absolute error over pairs of slices, and the error of predicting 0; in slices."""
    errors, nothing = [], []
    for slices, matrix in slabs:
        places = np.array(slices)
        truth = places[None, :] - places[:, None]
        pairs = ~np.eye(len(places), dtype=bool)
        errors.append(np.abs(matrix - truth)[pairs])
        nothing.append(np.abs(truth)[pairs])
    return float(np.concatenate(errors).mean()), float(np.concatenate(nothing).mean())


def _ascending(slices: Sequence[int], matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """The matrix with the slices of the slab in ascending order."""
    order = np.argsort(slices)
    return matrix[np.ix_(order, order)]


def _line_colour(number: int) -> str:
    """The colour of a class for lines on white, where yellow is too faint."""
    colour = class_colour(number)
    return "#000000" if colour == "#F0E442" else colour


@contextmanager
def _chart(title: str, width: float = 3.6, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure with axes to fill in the report's style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, 2.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns)
        if columns == 1:
            axes.set_title(title)
        else:
            figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        yield figure, axes


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield
