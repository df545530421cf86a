"""A picture of one slice with every validation: what the network makes of it as training goes on."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.training.trainable import Slice
from sam2_3dmed.volume.label import class_colour

_HEIGHT = 3.6
"""Of a picture, in inches."""
_WHITEST = 0.8
"""The grey of the brightest tissue: the truth's outline is white."""


def write_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (H, W, 3) as PNG, whole or not at all."""
    from matplotlib.image import imsave

    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    imsave(content, pixels, format="png")
    with replacing(path) as file:
        file.write(content.getvalue())


def draw_slice(shown: Slice, names: Sequence[str], title: str) -> NDArray[np.uint8]:
    """The slice alone, and with outlines, the prediction's in colour and the truth's dashed in white; (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = shown.truth.shape
    figure = Figure(figsize=(2 * _HEIGHT * width / height, _HEIGHT + 0.6), layout="constrained", facecolor="0.5")
    canvas = FigureCanvasAgg(figure)
    plain, outlined = figure.subplots(1, 2)
    for axes in (plain, outlined):
        axes.imshow(shown.image[0] * _WHITEST, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    plain.set_title(title, fontsize=9, loc="left")
    for k, name in enumerate(names, start=1):
        colour = np.array(class_colour(k)) / 255
        for classes, look in ((shown.predicted, {"colors": [colour]}), (shown.truth, _TRUTH)):
            inside = np.pad(classes == k, 1).astype(float)  # so that an outline closes at the border
            if inside.any():
                outlined.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), inside, [0.5], **look)
        outlined.plot([], color=colour, label=name)
    outlined.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    outlined.plot([], color="white", linestyle="dashed", label="truth")
    figure.legend(loc="outside lower center", ncols=len(names) + 1, fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


_TRUTH = {"colors": "white", "linestyles": "dashed", "linewidths": 1}
