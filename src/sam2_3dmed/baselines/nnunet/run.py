"""Runs of nnU-Net: its data set, plans and preprocessing, its training, and the weights that are left."""

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sam2_3dmed.baselines.nnunet.dataset import write_dataset, write_split
from sam2_3dmed.baselines.nnunet.environment import Worker, installed_versions
from sam2_3dmed.baselines.recipe import NnunetRecord, NnunetSpec
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import naming, write_text
from sam2_3dmed.run.run_folder import MODEL_FILE
from sam2_3dmed.run.systems import Preparation, TrainingRun
from sam2_3dmed.training.loop import FitResult
from sam2_3dmed.training.monitoring import append_curves, read_curves

FOLDER = "nnunet"
"""nnU-Net's own folder in a run folder: its log, its results, its memory, and until training has ended its data."""
LOG_FILE = "log.txt"
_MEMORY_FILE = "memory.json"
_PEAKS = ("peak_mb", "gpu_peak_mb")

logger = logging.getLogger(__name__)


class NnunetRun(TrainingRun):
    """A run in a process of nnU-Net's environment, which first plans and preprocesses the cases of a new run.

    Raises: ConfigError for several devices. ProcessError if nnU-Net fails.
    """

    record: NnunetRecord

    def __init__(self, preparation: Preparation) -> None:
        if preparation.distributed.size > 1:
            raise ConfigError("--devices and --nodes: nnunet trains on one GPU here")
        self.folder = preparation.folder
        self.record = cast(NnunetRecord | None, preparation.resumed) or NnunetRecord(
            model=_plan(preparation),
            plan=preparation.plan,
            recipe=preparation.recipe,
            weights="none",
            versions={"sam2-3dmed": version("sam2-3dmed"), **installed_versions()},
        )
        logger.info("model: %s", self.record.about)

    def fit(self, *, resume: bool) -> FitResult:
        """Train, or go on from nnU-Net's last checkpoint; leave the weights and curves.csv in the run's folder.

        The weights are the last ones, as nnU-Net has it. Its own predictions of the validation cases and their summary
        stay in nnunet/results.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        root, variables = self.folder / FOLDER, _variables(self.folder)
        request = {
            **self.record.recipe.training.model_dump(),
            **self.record.model.model_dump(),
            "device": device,
            "weights": str((root / MODEL_FILE).resolve()),
        }
        with Worker("train", request, root / LOG_FILE, folders=variables, device=device) as worker:
            for answer in worker.answers():
                _note_peaks(self.folder, answer)
                if "epoch" in answer:
                    self._add_to_curves(answer)
        (root / MODEL_FILE).replace(self.folder / MODEL_FILE)
        for part in ("nnUNet_raw", "nnUNet_preprocessed"):
            shutil.rmtree(variables[part], ignore_errors=True)
        return self._result()

    def save(self) -> None:
        """Nothing: `fit` has written the weights."""

    def _add_to_curves(self, answer: Mapping[str, Any]) -> None:
        """An epoch's row of curves.csv and line of the log. The Dice is nnU-Net's, of patches."""
        mean = float(np.nanmean(answer["dice"])) if np.isfinite(answer["dice"]).any() else float("nan")
        per_class = zip(self.record.plan.labels.values(), answer["dice"], strict=True)
        row = {
            "epoch": answer["epoch"] - 1,
            "step": answer["steps"],
            "loss/train": answer["train_losses"],
            "loss/validation": answer["val_losses"],
            "learning_rate": answer["lrs"],
            "validation/patch_dice": mean,
            **{f"validation/patch_dice_{name}": value for name, value in per_class},
        }
        append_curves(self.folder / "curves.csv", row)
        done, every, loss = answer["epoch"], answer["epochs"], answer["train_losses"]
        logger.info("epoch %d of %d: loss %.4f, Dice of patches %.4f", done, every, loss, mean)

    def _result(self) -> FitResult:
        """The best Dice of patches, epochs and steps, from curves.csv."""
        path = self.folder / "curves.csv"
        rows = read_curves(path)
        try:
            best = max(float(row["validation/patch_dice"]) for row in rows)
            return FitResult(best, rows[-1]["epoch"] + 1, int(rows[-1]["step"]))
        except (ValueError, KeyError, IndexError):
            raise DataError(f"{path}: not what training writes") from None


def _variables(folder: Path) -> dict[str, Path]:
    """nnU-Net's folders in a run folder, by the names of its variables."""
    return {f"nnUNet_{part}": folder / FOLDER / part for part in ("raw", "preprocessed", "results")}


def _plan(preparation: Preparation) -> NnunetSpec:
    root, variables, model = preparation.folder / FOLDER, _variables(preparation.folder), preparation.recipe.model
    with naming(root, "cannot be written"):
        for path in variables.values():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        with preparation.progress("Writing cases for nnU-Net") as bar:
            write_dataset(preparation.dataset, preparation.plan, variables["nnUNet_raw"], bar)
        logger.info("nnU-Net plans and preprocesses; its output is in %s", root / LOG_FILE)
        with Worker("plan", model.model_dump(), root / LOG_FILE, folders=variables) as worker:
            answer = worker.answer()
        write_split(preparation.split, variables["nnUNet_preprocessed"])
    return NnunetSpec(configuration=model.configuration, plans=answer["plans"], dataset=answer["dataset"])


def training_peaks(folder: Path) -> tuple[float | None, float | None]:
    """The most memory and GPU memory in MB that nnU-Net's process had in the training of a run; None where unknown.

    An interrupted run has the highest of its parts.
    """
    try:
        content = read_object(folder / FOLDER / _MEMORY_FILE)
    except DataError:
        return None, None
    memory_mb, gpu_memory_mb = (
        value if isinstance(value := content.get(name), int | float) else None for name in _PEAKS
    )
    return memory_mb, gpu_memory_mb


def _note_peaks(folder: Path, answer: Mapping[str, Any]) -> None:
    before = training_peaks(folder)
    both = zip(before, (answer[name] for name in _PEAKS), strict=True)
    highest = tuple(max((mb for mb in pair if mb is not None), default=None) for pair in both)
    if highest != before:
        write_text(folder / FOLDER / _MEMORY_FILE, json.dumps(dict(zip(_PEAKS, highest, strict=True))) + "\n")
