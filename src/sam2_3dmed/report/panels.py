"""A picture of a slice with outlines: described once, drawn as SVG on the page and with matplotlib in figures."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sam2_3dmed.volume.label import in_pictures

# Okabe and Ito's colours, which colour-blind readers can distinguish; the truth is always white and dashed.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
TRUTH_COLOUR = "#FFFFFF"
_TRUTH_IN_LEGEND = "0.5"  # white is invisible in a legend on white
WHITEST = 0.8
"""The grey of the brightest tissue: white outlines must stand out from bone."""

Point = tuple[int, int]
Lines = list[NDArray[np.int64]]
"""Polylines, each (n, 2): x from 0 to W and y from 0 to H, at corners of pixels; closed if it ends where it starts."""


@dataclass(frozen=True)
class Outline:
    """Lines of one colour along the edges of pixels."""

    lines: Lines
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A slice with outlines.

    Attributes:
        description: The alternative text.
        pixels: (H, W, 3) uint8, the top row first.
        height_mm, width_mm: Of one pixel.
    """

    title: str
    description: str
    pixels: NDArray[np.uint8]
    height_mm: float
    width_mm: float
    outlines: Sequence[Outline] = ()

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the picture."""
        return self.pixels.shape[1] * self.width_mm, self.pixels.shape[0] * self.height_mm

    @property
    def png_address(self) -> str:
        """The pixels as a PNG in a data: address."""
        buffer = io.BytesIO()
        imsave(buffer, self.pixels, format="png", metadata={"Software": "sam2-3dmed"})
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    def lines_mm(self, outline: Outline) -> list[NDArray[np.float64]]:
        """The lines of an outline, each (n, 2) x and y in mm."""
        return [line * np.array([self.width_mm, self.height_mm]) for line in outline.lines]

    def path(self, outline: Outline) -> str:
        """An outline as the data of an SVG path in mm."""
        lines = ("L".join(f"{x:.6g} {y:.6g}" for x, y in line.tolist()) for line in self.lines_mm(outline))
        return "".join("M" + line for line in lines)


def class_colour(number: int) -> str:
    """The colour of class `number`, from 0."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]


def grey(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] -> (H, W, 3) grey; white is kept for the outline of the truth."""
    return np.repeat((image * (255 * WHITEST)).round().astype(np.uint8)[..., None], 3, axis=-1)


def panel_rows(
    rows: Sequence[Sequence[Panel]],
    labels: Mapping[int, str],
    titles: Sequence[str],
    areas: Mapping[str, str] | None = None,
) -> Any:
    """A figure with a row of panels for each title, and a legend below. areas: name -> colour of filled areas."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(rows) + 0.5), layout="constrained", facecolor="white")
    for axes, panels, title in zip(figure.subplots(len(rows), columns, squeeze=False), rows, titles, strict=True):
        for place, panel in zip(axes, panels, strict=True):
            draw_panel(place, panel)
        axes[0].set_title(f"{in_pictures(title)}\n{panels[0].title}", fontsize=8, loc="left")
    legend: list[Any] = [
        Line2D([], [], color=class_colour(i), label=in_pictures(name)) for i, name in enumerate(labels.values())
    ]
    legend.append(Line2D([], [], color=_TRUTH_IN_LEGEND, linestyle="--", label="truth"))
    legend += [Patch(color=colour, label=name) for name, colour in (areas or {}).items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def draw_panel(axes: Any, panel: Panel) -> None:
    """Draw the panel on matplotlib's axes, with lines of one point."""
    width, height = panel.size_mm
    axes.imshow(panel.pixels, extent=(0, width, height, 0), interpolation="nearest")
    for outline in panel.outlines:
        style = (0, (4, 3)) if outline.dashed else "-"
        lines = LineCollection(panel.lines_mm(outline), colors=outline.colour, linewidths=1, linestyles=[style])
        axes.add_collection(lines)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=8, loc="left")


def class_outlines(classes: NDArray[np.integer], num_classes: int) -> list[Lines]:
    """The outlines of each class 1..K in (H, W); a border that two classes share belongs to the higher one."""
    above, left = _border_owners(classes)
    return [_trace(above == number, left == number) for number in range(1, num_classes + 1)]


def all_outlines(classes: NDArray[np.integer]) -> Lines:
    """Every border in (H, W) between two classes, or a class and the background, once."""
    above, left = _border_owners(classes)
    return _trace(above > 0, left > 0)


def _border_owners(classes: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """For the edge above each pixel, (H + 1, W), and left of it, (H, W + 1): the higher of the classes it divides.

    0 where an edge divides nothing. The outside of the picture is background.
    """
    owners = []
    for axis in (0, 1):
        padded = np.pad(classes, [(1, 1) if axis == i else (0, 0) for i in (0, 1)])
        before, after = np.delete(padded, -1, axis), np.delete(padded, 0, axis)
        owners.append(np.where(before != after, np.maximum(before, after), 0))
    return owners[0], owners[1]


def _trace(above: NDArray[np.bool_], left: NDArray[np.bool_]) -> Lines:
    """Join edges to lines that are as long as possible."""
    neighbours: defaultdict[Point, set[Point]] = defaultdict(set)
    for edges, (dx, dy) in ((above, (1, 0)), (left, (0, 1))):
        for y, x in np.argwhere(edges).tolist():
            neighbours[x, y].add((x + dx, y + dy))
            neighbours[x + dx, y + dy].add((x, y))
    # Where one or three edges meet a line must end. Lines start there first, then only loops are left.
    starts = sorted(point for point, others in neighbours.items() if len(others) % 2)
    lines = []
    for start in [*starts, *sorted(neighbours)]:
        while neighbours[start]:
            lines.append(np.array(_walk(start, neighbours)))
    return lines


def _walk(start: Point, neighbours: dict[Point, set[Point]]) -> list[Point]:
    """The corners of one line from `start`, straight on where possible; its edges are removed."""
    corners, here = [start], start
    direction: Point | None = None
    while neighbours[here]:
        ahead = (here[0] + direction[0], here[1] + direction[1]) if direction else None
        following = ahead if ahead in neighbours[here] else min(neighbours[here])
        neighbours[here].remove(following)
        neighbours[following].remove(here)
        turned = (following[0] - here[0], following[1] - here[1])
        if direction == turned:
            corners[-1] = following
        else:
            corners.append(following)
        here, direction = following, turned
        if here == start:
            break
    return corners
