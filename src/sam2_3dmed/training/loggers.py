"""Loggers besides curves.csv: TensorBoard, MLflow, Weights & Biases. A resumed run goes on with its entry."""

import json
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.processes.atomic import write_text

PROJECT = "sam2-3dmed"
ENTRIES_FILE = "loggers.json"
_MLFLOW_REFUSES = re.compile(r"[^\w/. -]+", re.ASCII)


class RunLogger(ABC):
    """Where the metrics of a run go."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""

    def log_image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:  # noqa: B027
        """Log a picture (H, W, 3); most loggers take none."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write what is buffered, and mark the run as finished or failed."""


class TensorBoardLogger(RunLogger):
    """Event files in `tensorboard/` of the run folder.

    resumed_step: where a resumed run goes on; TensorBoard hides what was written beyond it.
    """

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

    def __init__(self, folder: Path) -> None:
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

    def __init__(self, folder: Path) -> None:
        import wandb

        entry = _entry(folder, "wandb", lambda: uuid.uuid4().hex[:12])
        self.run: Any = wandb.init(project=PROJECT, name=folder.name, dir=folder, id=entry, resume="allow")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


def require_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError if the package of a logger is not installed; early, since preparing data can take minutes."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"logger {name} needs the extra: pip install 'sam2-3dmed[{name}]'")


def make_loggers(names: Sequence[str], folder: Path, resumed_step: int | None = None) -> list[RunLogger]:
    """The loggers of a run, by name: `tensorboard`, `mlflow`, `wandb`.

    Raises:
        ConfigError: the package that a logger needs is not installed.
        DataError: a broken loggers.json.
    """
    require_loggers(names)
    makers: dict[str, Callable[[], RunLogger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, resumed_step),
        "mlflow": lambda: MLflowLogger(folder),
        "wandb": lambda: WandbLogger(folder),
    }
    return [makers[name]() for name in names]


def _entry(folder: Path, name: str, new: Callable[[], str]) -> str:
    """The name of a run's entry with a logger, which is kept in the run folder."""
    path = folder / ENTRIES_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name in entries:
            return str(entries[name])
    except (OSError, ValueError, TypeError):
        raise DataError(f"{path}: expected the entry of each logger, by its name") from None
    entry = new()
    write_text(path, json.dumps({**entries, name: entry}) + "\n")
    return entry
