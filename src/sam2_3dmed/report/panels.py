"""One picture of a slice, described once and drawn twice: as SVG for the page, with matplotlib for papers."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.report.outlines import Lines

# Okabe and Ito's colours, which the colour-blind can tell apart; the truth is always white and dashed.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
TRUTH_COLOUR = "#FFFFFF"
WHITEST = 0.8
"""The grey of the brightest tissue: white outlines must stand out from bone."""


@dataclass(frozen=True)
class Outline:
    """Lines of one colour along the edges of pixels."""

    lines: Lines
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A slice with outlines.

    pixels: (H, W, 3) uint8, the top row first; height_mm, width_mm: of one pixel; title: a few words;
    description: what someone who cannot see it should hear.
    """

    title: str
    description: str
    pixels: NDArray[np.uint8]
    height_mm: float
    width_mm: float
    outlines: Sequence[Outline] = ()


def class_colour(number: int) -> str:
    """The colour of class `number`, from 0."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]


def grey(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] -> (H, W, 3) grey, white kept free for the truth's outline."""
    return np.repeat((image * (255 * WHITEST)).round().astype(np.uint8)[..., None], 3, axis=-1)


def png_address(pixels: NDArray[np.uint8]) -> str:
    """An image, (H, W, 3) uint8, as a data: address."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": "sam2-3dmed"})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def panel_svg(panel: Panel) -> str:
    """The panel as an SVG element in mm; outlines stay one pixel wide however large it is shown."""
    height, width = (panel.pixels.shape[0] * panel.height_mm, panel.pixels.shape[1] * panel.width_mm)
    paths = "".join(_path(outline, panel) for outline in panel.outlines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.5g} {height:.5g}" role="img" '
        f'aria-label="{escape(panel.description)}"><image href="{png_address(panel.pixels)}" width="{width:.5g}" '
        f'height="{height:.5g}" preserveAspectRatio="none" style="image-rendering:pixelated"/>{paths}</svg>'
    )


def _path(outline: Outline, panel: Panel) -> str:
    if not outline.lines:
        return ""
    size = np.array([panel.width_mm, panel.height_mm])
    d = "".join("M" + "L".join(f"{x:.6g} {y:.6g}" for x, y in (line * size).tolist()) for line in outline.lines)
    dashes = ' stroke-dasharray="4 3"' if outline.dashed else ""
    return (
        f'<path d="{d}" fill="none" stroke="{outline.colour}" stroke-width="1"{dashes} '
        'vector-effect="non-scaling-stroke"/>'
    )


def draw_panel(axes: Any, panel: Panel) -> None:
    """The same on matplotlib's axes, where a point of line width stands for the pixel."""
    from matplotlib.collections import LineCollection

    rows, columns = panel.pixels.shape[:2]
    height, width = rows * panel.height_mm, columns * panel.width_mm
    axes.imshow(panel.pixels, extent=(0, width, height, 0), interpolation="nearest")
    size = np.array([panel.width_mm, panel.height_mm])
    for outline in panel.outlines:
        style = (0, (4, 3)) if outline.dashed else "-"
        axes.add_collection(
            LineCollection(
                [line * size for line in outline.lines], colors=outline.colour, linewidths=1, linestyles=[style]
            )
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=8, loc="left")
