"""curves.csv: rows appended epoch by epoch, validation columns only where an epoch validated, cut back on resuming."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sam2_3dmed.training.curves import CurvesFile


def trainer(epoch: int, **metrics: float) -> Any:
    names = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        current_epoch=epoch, global_step=10 * (epoch + 1), callback_metrics=names, is_global_zero=True
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_validation_metrics_stand_in_the_epoch_that_validated(tmp_path: Path) -> None:
    curves = CurvesFile(tmp_path / "curves.csv")
    curves.on_train_epoch_end(trainer(0, train__total=1.0), None)
    curves.on_validation_end(trainer(1), None)
    curves.on_train_epoch_end(trainer(1, train__total=0.5, validation__dice=0.25), None)
    curves.on_train_epoch_end(trainer(2, train__total=0.25, validation__dice=0.25), None)  # still there, but old
    assert rows(tmp_path / "curves.csv") == [
        {"epoch": "0", "step": "10", "train/total": "1.0", "validation/dice": ""},
        {"epoch": "1", "step": "20", "train/total": "0.5", "validation/dice": "0.25"},
        {"epoch": "2", "step": "30", "train/total": "0.25", "validation/dice": ""},
    ]


def test_a_resumed_run_cuts_what_its_checkpoint_had_not_reached(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    first = CurvesFile(path)
    for epoch in range(3):
        first.on_train_epoch_end(trainer(epoch, train__total=float(epoch)), None)
    second = CurvesFile(path)
    second.on_train_start(trainer(2), None)
    second.on_train_epoch_end(trainer(2, train__total=9.0), None)
    assert [row["train/total"] for row in rows(path)] == ["0.0", "1.0", "9.0"]
