"""A run of nnU-Net: its data set, plans and preprocessing, its training, and the weights that are left."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed.baselines.nnunet.dataset import write_dataset, write_split
from sam2_3dmed.baselines.nnunet.process import Worker, most_processes
from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig, NnunetSpec
from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import MedicalDataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import Progress
from sam2_3dmed.training.fit import FitResult

FOLDER = "nnunet"
"""In a run folder, nnU-Net's own: its log, its results, its memory, and until training has ended its data."""
WEIGHTS_FILE = "model.safetensors"
_MEMORY_FILE = "memory.json"
_PEAKS = ("peak_mb", "gpu_peak_mb")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folders:
    """nnU-Net's, in the folder of a run."""

    root: Path

    @property
    def variables(self) -> Mapping[str, Path]:
        """By the names that nnU-Net knows them by."""
        return {f"nnUNet_{part}": self.root / part for part in ("raw", "preprocessed", "results")}

    @property
    def log(self) -> Path:
        """What nnU-Net says."""
        return self.root / "log.txt"


def plan_run(
    config: NnunetConfig,
    plan: Plan,
    catalog: MedicalDataset,
    split: Split,
    folder: Path,
    *,
    progress: Callable[[str], AbstractContextManager[Progress | None]],
) -> NnunetSpec:
    """nnU-Net's plans for the training and validation cases, which it preprocesses.

    catalog: of these cases alone. folder: of the run. progress: a bar for a title.

    Raises:
        ConfigError: no environment. ProcessError: nnU-Net fails. UserError: cases that cannot be read.
    """
    folders = Folders(folder / FOLDER)
    try:
        for path in folders.variables.values():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        with progress("Writing cases for nnU-Net") as bar:
            write_dataset(catalog, plan, folders.variables["nnUNet_raw"], bar)
        logger.info("nnU-Net plans and preprocesses; it says more in %s", folders.log)
        told = {**config.model.model_dump(), "processes": most_processes()}
        with Worker("plan", told, folders.log, folders=folders.variables) as worker:
            answer = worker.answer()
        write_split(split, folders.variables["nnUNet_preprocessed"])
    except OSError as error:
        raise DataError(f"{folders.root}: cannot be written: {error.strerror or error}") from None
    return NnunetSpec(configuration=config.model.configuration, plans=answer["plans"], dataset=answer["dataset"])


def fit_nnunet(
    config: NnunetConfig, spec: NnunetSpec, labels: Mapping[int, str], folder: Path, *, device: str
) -> FitResult:
    """Train, or go on from nnU-Net's last checkpoint; leave `model.safetensors` and curves.csv in the run's folder.

    The weights are the last ones, as nnU-Net has it; its own predictions of the validation cases and their summary stay
    in nnunet/results. `training_peaks` tells what memory it took.

    Raises: ProcessError if nnU-Net fails.
    """
    folders = Folders(folder / FOLDER)
    told = {
        **config.training.model_dump(),
        **spec.model_dump(),
        "device": device,
        "weights": str((folders.root / WEIGHTS_FILE).resolve()),
    }
    curves = _Curves(folder / "curves.csv", list(labels.values()))
    with Worker("train", told, folders.log, folders=folders.variables, device=device) as worker:
        for answer in worker.answers():
            _note_peaks(folder, answer)
            if "epoch" in answer:
                curves.add(answer)
    (folders.root / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    for part in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.rmtree(folders.variables[part], ignore_errors=True)
    return curves.result()


def training_peaks(folder: Path) -> tuple[float | None, float | None]:
    """Of a run, the most memory that nnU-Net's process had in training so far, and that it had on its GPU, in MB.

    None: not known. An interrupted run has the highest of its parts.
    """
    try:
        content = json.loads((folder / FOLDER / _MEMORY_FILE).read_text(encoding="utf-8"))
        memory_mb, gpu_memory_mb = (content[name] for name in _PEAKS)
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    return memory_mb, gpu_memory_mb


def _note_peaks(folder: Path, told: Mapping[str, Any]) -> None:
    before = dict(zip(_PEAKS, training_peaks(folder), strict=True))
    known = {name: [mb for mb in (before[name], told[name]) if mb is not None] for name in _PEAKS}
    highest = {name: max(values, default=None) for name, values in known.items()}
    if highest != before:
        write_text(folder / FOLDER / _MEMORY_FILE, json.dumps(highest) + "\n")


class _Curves:
    """curves.csv, a row an epoch, where an interrupted run goes on; the Dice is nnU-Net's, of patches."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._names = names
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [dict(row) for row in csv.DictReader(file)]

    def add(self, told: Mapping[str, Any]) -> None:
        """A row, and a line of the log."""
        dice = dict(zip(self._names, told["dice"], strict=True))
        mean = float(np.nanmean(told["dice"])) if np.isfinite(told["dice"]).any() else float("nan")
        row = {
            "epoch": told["epoch"] - 1,
            "step": told["steps"],
            "loss/train": told["train_losses"],
            "loss/validation": told["val_losses"],
            "learning_rate": told["lrs"],
            "validation/patch_dice": mean,
            **{f"validation/patch_dice_{name}": value for name, value in dice.items()},
        }
        self._rows = [old for old in self._rows if int(old["epoch"]) < row["epoch"]] + [row]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(row), restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())
        done, every, loss = told["epoch"], told["epochs"], told["train_losses"]
        logger.info("epoch %d of %d: loss %.4f, Dice of patches %.4f", done, every, loss, mean)

    def result(self) -> FitResult:
        """The best Dice of patches, epochs, steps."""
        best = max((float(row["validation/patch_dice"]) for row in self._rows), default=float("nan"))
        last = self._rows[-1] if self._rows else {"epoch": -1, "step": 0}
        return FitResult(best, int(last["epoch"]) + 1, int(last["step"]))
