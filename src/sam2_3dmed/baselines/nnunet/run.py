"""Runs of nnU-Net: its data set, plans and preprocessing, its training, and the weights that are left."""

import csv
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sam2_3dmed.baselines.nnunet.dataset import write_dataset, write_split
from sam2_3dmed.baselines.nnunet.environment import installed_versions
from sam2_3dmed.baselines.nnunet.process import Worker, most_processes
from sam2_3dmed.baselines.nnunet.recipe import NnunetRecord, NnunetSpec
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.processes.atomic import write_csv, write_text
from sam2_3dmed.run.run_folder import MODEL_FILE
from sam2_3dmed.run.systems import Preparation, TrainingRun
from sam2_3dmed.training.fit import FitResult

FOLDER = "nnunet"
"""nnU-Net's own folder in a run folder: its log, its results, its memory, and until training has ended its data."""
LOG_FILE = "log.txt"
_MEMORY_FILE = "memory.json"
_PEAKS = ("peak_mb", "gpu_peak_mb")

logger = logging.getLogger(__name__)


@dataclass
class NnunetRun(TrainingRun):
    """A run in a process of nnU-Net's environment."""

    record: NnunetRecord
    folder: Path

    def fit(self, *, resume: bool) -> FitResult:
        """Train, or go on from nnU-Net's last checkpoint; leave the weights and curves.csv in the run's folder.

        The weights are the last ones, as nnU-Net has it. Its own predictions of the validation cases and their summary
        stay in nnunet/results.

        Raises:
            ProcessError: nnU-Net fails.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        root, variables = self.folder / FOLDER, _variables(self.folder)
        request = {
            **self.record.recipe.training.model_dump(),
            **self.record.model.model_dump(),
            "device": device,
            "weights": str((root / MODEL_FILE).resolve()),
        }
        curves = _Curves(self.folder / "curves.csv", list(self.record.plan.labels.values()))
        with Worker("train", request, root / LOG_FILE, folders=variables, device=device) as worker:
            for answer in worker.answers():
                _note_peaks(self.folder, answer)
                if "epoch" in answer:
                    curves.add(answer)
        (root / MODEL_FILE).replace(self.folder / MODEL_FILE)
        for part in ("nnUNet_raw", "nnUNet_preprocessed"):
            shutil.rmtree(variables[part], ignore_errors=True)
        return curves.result()

    def save(self) -> None:
        """Nothing: `fit` has written the weights."""


def start_run(preparation: Preparation) -> NnunetRun:
    """Have nnU-Net plan and preprocess the training and validation cases, unless the run is resumed.

    Raises:
        ConfigError: several devices. ProcessError: nnU-Net fails. UserError: cases that cannot be read.
    """
    if preparation.distributed.size > 1:
        raise ConfigError("--devices and --nodes: nnunet trains on one GPU here")
    record = cast(NnunetRecord | None, preparation.resumed) or NnunetRecord(
        model=_plan(preparation),
        plan=preparation.plan,
        recipe=preparation.recipe,
        weights="none",
        versions={"sam2-3dmed": version("sam2-3dmed"), **installed_versions()},
    )
    logger.info("model: %s", record.about)
    return NnunetRun(record, preparation.folder)


def _variables(folder: Path) -> dict[str, Path]:
    """nnU-Net's folders in a run folder, by the names of its variables."""
    return {f"nnUNet_{part}": folder / FOLDER / part for part in ("raw", "preprocessed", "results")}


def _plan(preparation: Preparation) -> NnunetSpec:
    root, variables = preparation.folder / FOLDER, _variables(preparation.folder)
    model = preparation.recipe.model
    try:
        for path in variables.values():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        with preparation.progress("Writing cases for nnU-Net") as bar:
            write_dataset(preparation.dataset, preparation.plan, variables["nnUNet_raw"], bar)
        logger.info("nnU-Net plans and preprocesses; its output is in %s", root / LOG_FILE)
        request = {**model.model_dump(), "processes": most_processes()}
        with Worker("plan", request, root / LOG_FILE, folders=variables) as worker:
            answer = worker.answer()
        write_split(preparation.split, variables["nnUNet_preprocessed"])
    except OSError as error:
        raise DataError(f"{root}: cannot be written: {error.strerror or error}") from None
    return NnunetSpec(configuration=model.configuration, plans=answer["plans"], dataset=answer["dataset"])


def training_peaks(folder: Path) -> tuple[float | None, float | None]:
    """The most memory and GPU memory in MB that nnU-Net's process had in the training of a run; None where unknown.

    An interrupted run has the highest of its parts.
    """
    try:
        content = json.loads((folder / FOLDER / _MEMORY_FILE).read_text(encoding="utf-8"))
        memory_mb, gpu_memory_mb = (content[name] for name in _PEAKS)
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    return memory_mb, gpu_memory_mb


def _note_peaks(folder: Path, answer: Mapping[str, Any]) -> None:
    before = training_peaks(folder)
    both = zip(before, (answer[name] for name in _PEAKS), strict=True)
    highest = tuple(max((mb for mb in pair if mb is not None), default=None) for pair in both)
    if highest != before:
        write_text(folder / FOLDER / _MEMORY_FILE, json.dumps(dict(zip(_PEAKS, highest, strict=True))) + "\n")


class _Curves:
    """curves.csv, a row an epoch; a resumed run goes on in it. The Dice is nnU-Net's, of patches."""

    def __init__(self, path: Path, class_names: list[str]) -> None:
        self._path = path
        self._class_names = class_names
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [dict(row) for row in csv.DictReader(file)]

    def add(self, answer: Mapping[str, Any]) -> None:
        """Write a row, and a line of the log."""
        mean = float(np.nanmean(answer["dice"])) if np.isfinite(answer["dice"]).any() else float("nan")
        per_class = zip(self._class_names, answer["dice"], strict=True)
        row = {
            "epoch": answer["epoch"] - 1,
            "step": answer["steps"],
            "loss/train": answer["train_losses"],
            "loss/validation": answer["val_losses"],
            "learning_rate": answer["lrs"],
            "validation/patch_dice": mean,
            **{f"validation/patch_dice_{name}": value for name, value in per_class},
        }
        self._rows = [old for old in self._rows if int(old["epoch"]) < row["epoch"]] + [row]
        write_csv(self._path, self._rows)
        done, every, loss = answer["epoch"], answer["epochs"], answer["train_losses"]
        logger.info("epoch %d of %d: loss %.4f, Dice of patches %.4f", done, every, loss, mean)

    def result(self) -> FitResult:
        """The best Dice of patches, epochs, steps."""
        best = max((float(row["validation/patch_dice"]) for row in self._rows), default=float("nan"))
        last = self._rows[-1] if self._rows else {"epoch": -1, "step": 0}
        return FitResult(best, int(last["epoch"]) + 1, int(last["step"]))
