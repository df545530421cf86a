"""curves.csv: rows appended epoch by epoch, validation columns only where an epoch validated, cut back on resuming."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sam2_3dmed.training.csv_logger import CurvesFile
from sam2_3dmed.training.module import TrainingModule


class Logger:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((metrics, step))


@pytest.fixture(scope="module")
def module(make_module) -> TrainingModule:
    return make_module()


def end_epoch(curves: CurvesFile, module: TrainingModule, epoch: int, loss: float, **metrics: float) -> Any:
    """The end of an epoch in which one batch had this loss. metrics: those that Lightning knows."""
    names = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    trainer = SimpleNamespace(
        current_epoch=epoch,
        global_step=10 * (epoch + 1),
        callback_metrics={"loss": torch.tensor(7.0), **names},
        is_global_zero=True,
        loggers=[Logger()],
    )
    module.means.add("train/total", loss)
    curves.on_train_epoch_end(trainer, module)
    return trainer


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_validation_metrics_stand_in_the_epoch_that_validated(module: TrainingModule, tmp_path: Path) -> None:
    curves = CurvesFile(tmp_path / "curves.csv")
    end_epoch(curves, module, 0, 1.0)
    curves.on_validation_end(None, module)
    end_epoch(curves, module, 1, 0.5, validation__dice=0.25, position_error__validation=1.5)
    end_epoch(curves, module, 2, 0.25, validation__dice=0.25)  # still there, but old
    none = {"validation/dice": "", "position_error/validation": ""}
    assert rows(tmp_path / "curves.csv") == [
        {"epoch": "0", "step": "10", "train/total": "1.0", **none},
        {
            "epoch": "1",
            "step": "20",
            "train/total": "0.5",
            "validation/dice": "0.25",
            "position_error/validation": "1.5",
        },
        {"epoch": "2", "step": "30", "train/total": "0.25", **none},
    ]


def test_means_begin_anew_and_loggers_are_told(module: TrainingModule, tmp_path: Path) -> None:
    curves = CurvesFile(tmp_path / "curves.csv")
    module.means.add("train/total", 3.0)
    first, second = (end_epoch(curves, module, epoch, 1.0) for epoch in (0, 1))
    assert first.loggers[0].told == [({"train/total": 2.0}, 10)]
    assert second.loggers[0].told == [({"train/total": 1.0}, 20)]


def test_a_resumed_run_cuts_what_its_checkpoint_had_not_reached(module: TrainingModule, tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    first = CurvesFile(path)
    for epoch in range(3):
        end_epoch(first, module, epoch, float(epoch))
    second = CurvesFile(path)
    second.on_train_start(SimpleNamespace(current_epoch=2), module)
    end_epoch(second, module, 2, 9.0)
    assert [row["train/total"] for row in rows(path)] == ["0.0", "1.0", "9.0"]
