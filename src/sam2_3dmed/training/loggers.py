"""Loggers besides curves.csv: TensorBoard, MLflow, Weights & Biases; and the picture that comes with a validation.

A resumed run goes on with its entry.
"""

import json
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.volume.label import class_colour, in_pictures

PROJECT = "sam2-3dmed"
ENTRIES_FILE = "loggers.json"
_MLFLOW_REFUSES = re.compile(r"[^\w/. -]+", re.ASCII)
_HEIGHT = 3.6
"""Of a picture, in inches."""
_WHITEST = 0.8
"""The grey of the brightest tissue: the truth's outline is white."""
_TRUTH = {"colors": "white", "linestyles": "dashed", "linewidths": 1}


class Slice(NamedTuple):
    """One slice of a validated volume."""

    image: NDArray[np.floating]
    """(C, H0, W0) in [0, 1]."""
    truth: NDArray[np.integer]
    """(H0, W0) class indices, as is the next."""
    predicted: NDArray[np.integer]


class RunLogger(ABC):
    """Where the metrics of a run go. resumed_step: where a resumed run goes on."""

    @abstractmethod
    def __init__(self, folder: Path, resumed_step: int | None) -> None: ...

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""

    def log_image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:  # noqa: B027
        """Log a picture (H, W, 3); most loggers take none."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write what is buffered, and mark the run as finished or failed."""


class TensorBoardLogger(RunLogger):
    """Event files in `tensorboard/` of the run folder. TensorBoard hides what was written beyond the resumed step."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=resumed_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class MLflowLogger(RunLogger):
    """To the server that MLFLOW_TRACKING_URI names, or else to files in the run folder."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow refuses files without it
            uri = (folder / "mlruns").resolve().as_uri()
        self.client = MlflowClient(uri)
        self.run_id = _entry(folder, "mlflow", lambda: self._new_run(folder.name))
        self.client.update_run(self.run_id, status="RUNNING")

    def _new_run(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        return str(self.client.create_run(number, run_name=name).info.run_id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(_MLFLOW_REFUSES.sub("", name), value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=rows)

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


class WandbLogger(RunLogger):
    """To Weights & Biases, whose own variables apply (WANDB_MODE, WANDB_API_KEY)."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        import wandb

        entry = _entry(folder, "wandb", lambda: uuid.uuid4().hex[:12])
        self.run: Any = wandb.init(project=PROJECT, name=folder.name, dir=folder, id=entry, resume="allow")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


_LOGGERS: Mapping[str, type[RunLogger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}


def require_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError if the package of a logger is not installed; early, since preparing data can take minutes."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"logger {name} needs the extra: pip install 'sam2-3dmed[{name}]'")


def make_loggers(names: Sequence[str], folder: Path, resumed_step: int | None = None) -> list[RunLogger]:
    """The loggers of a run. Raises: ConfigError as `require_loggers`; DataError for a broken loggers.json."""
    require_loggers(names)
    return [_LOGGERS[name](folder, resumed_step) for name in names]


def _entry(folder: Path, name: str, new: Callable[[], str]) -> str:
    """The name of a run's entry with a logger, which is kept in the run folder."""
    path = folder / ENTRIES_FILE
    entries = read_object(path) if path.is_file() else {}
    if name in entries:
        if not isinstance(entries[name], str):
            raise DataError(f"{path}: expected the entry of each logger, by its name")
        return str(entries[name])
    entry = new()
    write_text(path, json.dumps({**entries, name: entry}) + "\n")
    return entry


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
    plain.set_title(in_pictures(title), fontsize=9, loc="left")
    for k, name in enumerate(names, start=1):
        colour = np.array(class_colour(k)) / 255
        for classes, look in ((shown.predicted, {"colors": [colour]}), (shown.truth, _TRUTH)):
            inside = np.pad(classes == k, 1).astype(float)  # so that an outline closes at the border
            if inside.any():
                outlined.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), inside, [0.5], **look)
        outlined.plot([], color=colour, label=in_pictures(name))
    outlined.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    outlined.plot([], color="white", linestyle="dashed", label="truth")
    figure.legend(loc="outside lower center", ncols=len(names) + 1, fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
