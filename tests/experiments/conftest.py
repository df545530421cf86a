"""A folder of data sets, requests of small runs, and finished runs that are only written, not trained."""

import csv
import json
from pathlib import Path

import pytest

from sam2_3dmed.baselines.nnunet.environment import VARIABLE
from sam2_3dmed.experiments.planning import ReproduceRequest, Run
from sam2_3dmed.experiments.run_executor import RunStatus

QUICK = (
    "model.size=nano",
    "model.image_size=64",
    "training.single_slice_fraction=0",
    "training.samples_per_epoch=2",
    "training.batch_size=2",
    "training.validate_every=1",
    "training.workers=0",
)
SUMMARY = {
    "metrics": {
        "dice": {"better": "higher", "unit": None},
        "iou": {"better": "higher", "unit": None},
        "hd95_mm": {"better": "lower", "unit": "mm"},
        "nsd_2mm": {"better": "higher", "unit": None, "tolerance_mm": 2.0},
        "nsd_1mm": {"better": "higher", "unit": None, "tolerance_mm": 1.0},
    },
    "empty_policy": "penalise",
}


@pytest.fixture(autouse=True)
def without_nnunet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine has: a run of it takes minutes."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no environment"))


@pytest.fixture
def request_for(blobs: Path, tmp_path: Path):
    """A request for a table on the blobs, from scratch; slabs of 3 slices unless it says otherwise."""

    def make(table: int = 1, **changes) -> ReproduceRequest:
        settings = changes.pop("settings", ("slab_slices=3",))
        given = {"data": blobs, "out": tmp_path / "out", "weights": "none", "epochs": 1, **changes}
        return ReproduceRequest(table, settings=(*QUICK, *settings), **given)

    return make


@pytest.fixture
def finish():
    """Makes a run's folder look finished, with the given Dice of each case; IoU is D / (2 - D)."""

    def make(run: Run, out: Path, dice: list[float], seconds: float = 60.0) -> Path:
        folder = RunStatus.find(run, out).folder
        write_evaluation(folder / "evaluation", dice)
        (folder / "model.safetensors").write_bytes(b"")
        cost = {
            "training": {"seconds": seconds, "memory_mb": 900.0},
            "test": {"seconds": 6.0},
            "prediction": {"parameters": 2_000_000, "gflop": 3.5, "seconds": 0.25, "memory_mb": 700.0},
        }
        (folder / "cost.json").write_text(json.dumps(cost))
        return folder

    return make


def write_evaluation(folder: Path, dice: list[float]) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "kind", "class", *SUMMARY["metrics"]])
        for number, value in enumerate(dice):
            numbers = [value, value / (2 - value), 10 * (1 - value), value, value / 2]
            writer.writerow([f"case_{number}", "class", "ball", *numbers])
            writer.writerow([f"case_{number}", "mean", "mean", *numbers])
