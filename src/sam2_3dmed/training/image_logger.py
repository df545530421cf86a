"""What the network makes of a slice as training goes on: a picture with every validation."""

import io
from collections.abc import Sequence
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.training.run_module import RunModule, Slice
from sam2_3dmed.volume.label import class_colour

_HEIGHT = 3.6
"""Of a picture, in inches."""
_WHITEST = 0.8
"""The grey of the brightest tissue: the truth's outline is white."""


class SlicePictures(Callback):
    """Draws a slice of the first validation case, as FOLDER/epoch_NNNN.png and for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw."""
        from matplotlib.image import imsave

        assert isinstance(pl_module, RunModule)
        if not trainer.is_global_zero or pl_module.shown is None:
            return
        epoch = trainer.current_epoch + 1
        pixels = draw_slice(pl_module.shown, pl_module.class_names, f"epoch {epoch}")
        self.folder.mkdir(exist_ok=True)
        content = io.BytesIO()
        imsave(content, pixels, format="png")
        with replacing(self.folder / f"epoch_{epoch:04d}.png") as file:
            file.write(content.getvalue())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("validation/slice", pixels, trainer.global_step, dataformats="HWC")


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
