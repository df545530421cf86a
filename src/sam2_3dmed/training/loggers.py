"""Where curves go besides curves.csv: TensorBoard, MLflow, Weights & Biases; a resumed run goes on with its entry."""

import json
import os
import uuid
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.processes.atomic import write_text

PROJECT = "sam2-3dmed"
ENTRIES_FILE = "loggers.json"


def require_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError if a logger's package is not installed; here, since preparing data can take minutes."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"logger {name} needs the extra: pip install 'sam2-3dmed[{name}]'")


def make_loggers(names: Sequence[str], folder: Path, resumed_step: int | None = None) -> list[Logger]:
    """The loggers of a run, by name: `tensorboard`, `mlflow`, `wandb`.

    resumed_step: where a resumed run goes on; TensorBoard hides what was written beyond it.

    Raises:
        ConfigError: the package that a logger needs is not installed. DataError: a broken loggers.json.
    """
    require_loggers(names)
    return [_make(name, folder, resumed_step) for name in names]


def _make(name: str, folder: Path, resumed_step: int | None) -> Logger:
    if name == "mlflow":
        return _mlflow(folder)
    if name == "wandb":
        entry = _entry(folder, name, lambda: uuid.uuid4().hex[:12])
        return WandbLogger(name=folder.name, project=PROJECT, save_dir=folder, id=entry)
    return TensorBoardLogger(folder, name="tensorboard", version="", purge_step=resumed_step)


def _mlflow(folder: Path) -> Logger:
    """To the server that MLFLOW_TRACKING_URI names, or else to files in the run folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants to be told so
        uri = (folder / "mlruns").resolve().as_uri()

    def made(entry: str | None = None) -> MLFlowLogger:
        """The logger of an entry, or of a new one."""
        return MLFlowLogger(experiment_name=PROJECT, run_name=folder.name, tracking_uri=uri, run_id=entry)

    return made(_entry(folder, "mlflow", lambda: str(made().run_id)))


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
    if rank_zero_only.rank == 0:  # the only one that logs
        write_text(path, json.dumps({**entries, name: entry}) + "\n")
    return entry
