"""Scans without labels, from a folder to the losses: they feed SRPP and consistency, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import SplitConfig, read_recipe, with_settings
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.processes.signals import Terminated
from sam2_3dmed.run.run_folder import (
    load_model,
    read_record,
    read_weights,
    remember_data,
    remembered_data,
    remembered_without_labels,
)
from sam2_3dmed.run.train import TrainRequest, choose_split_and_plan, train
from sam2_3dmed.run.train import test_run as run_test
from sam2_3dmed.training.loop import TrainingLoop
from sam2_3dmed.volume.volume import Volume

SETTINGS = [
    *("model.size=nano", "model.image_size=64", "slab_slices=3", "training.epochs=2", "training.batch_size=2"),
    *("training.samples_per_epoch=6", "training.workers=0", "training.validate_every=1", "split.training_cases=3"),
    *("training.unlabelled_fraction=0.5", "training.ema_decay=0.9"),
]
TERMS = "loss.terms={bce: 1, dice: 1, relative_position: 0.01, consistency: 1}"


def recipe(*settings: str):
    return with_settings(read_recipe("scratch"), [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def further(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("further")
    for number in range(2):
        shutil.copy(blobs / "imagesTr" / f"blob_{number:02d}.nii.gz", folder / f"more_{number}.nii.gz")
    return folder


def test_they_take_part_in_training_and_leave_no_trace_in_masks(blobs: Path, further: Path, tmp_path: Path) -> None:
    request = TrainRequest(
        blobs, tmp_path / "run", recipe=recipe(TERMS, "model.srpp=true"), weights="none", unlabelled=further
    )
    run = train(request)
    split, record = Split.read(run / "split.json"), read_record(run)
    left = set(read_dataset(blobs).names) - {*split.train, *split.validation, *split.test}
    assert len(split.train) == 3
    prepared = {path.name.removesuffix(".json") for path in (tmp_path / ".cache").glob("*/unlabelled/*.json")}
    assert prepared == left | {"more_0", "more_1"}
    for file in (tmp_path / ".cache").glob("*/unlabelled/*.label.npy"):
        assert (np.load(file) == 3).all()  # two classes, and the value to ignore
    assert record.plan.ignore_label == 65535
    assert remembered_data(run, "unlabelled") == further.resolve()
    curves = (run / "curves.csv").read_text().splitlines()
    columns = curves[0].split(",")
    assert {"train/consistency", "train/relative_position"} <= set(columns)
    assert (run / "log.txt").read_text().count(f"{len(left) + 2} scans without labels take part") == 1
    scored = run_test(run, blobs)
    assert len(scored.cases) == len(split.test)
    mask = load_model(run)(Volume.read(blobs / "imagesTr" / "blob_00.nii.gz"))
    assert mask.array.dtype == np.uint8


def test_a_stopped_run_goes_on_to_the_same_weights(blobs: Path, further: Path, tmp_path: Path) -> None:
    """The teacher is the average of the weights, which a checkpoint has."""
    cache = tmp_path / "cache"
    request = TrainRequest(
        blobs, tmp_path / "whole", recipe=recipe(TERMS), weights="none", cache=cache, unlabelled=further
    )
    whole = train(request)
    original = TrainingLoop._end_epoch

    def stop(self: TrainingLoop, metrics: dict[str, float]) -> None:
        original(self, metrics)
        raise Terminated

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_end_epoch", stop)
        parts = TrainRequest(
            blobs, tmp_path / "parts", recipe=recipe(TERMS), weights="none", cache=cache, unlabelled=further
        )
        with pytest.raises(Terminated):
            train(parts)
    resumed = train(TrainRequest(blobs, tmp_path / "parts", resume=True, cache=cache))
    for name, tensor in read_weights(whole / "model.safetensors").items():
        assert torch.equal(tensor, read_weights(resumed / "model.safetensors")[name]), name


def test_a_resumed_run_has_the_scans_with_which_it_began(blobs: Path, further: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(further, tmp_path / "further"))
    run, cache = tmp_path / "run", tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "run", lambda *_: (_ for _ in ()).throw(Terminated()))
        with pytest.raises(Terminated):
            train(TrainRequest(blobs, run, recipe=recipe(TERMS), weights="none", cache=cache, unlabelled=folder))
    began = remembered_without_labels(run)
    assert {"more_0", "more_1"} <= set(began)
    shutil.copy(folder / "more_0.nii.gz", folder / "late.nii.gz")
    train(TrainRequest(blobs, run, resume=True, cache=cache))
    assert not list((cache / "unlabelled").glob("late*"))
    assert remembered_without_labels(run) == began
    (run / "model.safetensors").unlink()
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no such folder"):
        train(TrainRequest(blobs, run, resume=True, cache=cache))
    (moved / "more_1.nii.gz").unlink()
    with pytest.raises(DataError, match="'more_1': the run learns from this scan"):
        train(TrainRequest(blobs, run, resume=True, cache=cache, unlabelled=moved))


def test_what_a_failed_start_has_left_is_not_taken(blobs: Path, further: Path, tmp_path: Path) -> None:
    """A run that never began had a folder of scans; the new one is not asked for any."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    run.mkdir()
    remember_data(run, blobs, further, ["more_0"])
    train(TrainRequest(blobs, run, recipe=recipe(TERMS), weights="none", cache=cache))
    assert not {"more_0", "more_1"} & {*remembered_without_labels(run)}
    assert remembered_data(run, "unlabelled") is None


def test_few_training_cases_leave_the_other_parts_as_they_are(blobs: Path) -> None:
    """By way of the fingerprint, which knows the foreground of the cases that it opens."""
    dataset = read_dataset(blobs)
    whole, _ = choose_split_and_plan(dataset, SplitConfig())
    parts = {count: choose_split_and_plan(dataset, SplitConfig(training_cases=count))[0] for count in (1, 2, 5)}
    assert {(split.validation, split.test) for split in parts.values()} == {(whole.validation, whole.test)}
    assert set(parts[1].train) < set(parts[2].train) < set(parts[5].train) < set(whole.train)


def test_what_is_missing_or_twice_is_told(blobs: Path, further: Path, tmp_path: Path) -> None:
    def attempt(folder: Path | None, *settings: str) -> None:
        config = recipe(TERMS, *settings)
        train(TrainRequest(blobs, tmp_path / "run", recipe=config, weights="none", unlabelled=folder))

    with pytest.raises(DataError, match="no scan without a label"):
        attempt(None, "split.training_cases=none")
    with pytest.raises(DataError, match="another case has its name, 'blob_"):
        attempt(blobs / "imagesTr")
    with pytest.raises(ConfigError, match=r"unless training\.unlabelled_fraction"):
        attempt(further, "training.unlabelled_fraction=0")
    with pytest.raises(DataError, match="no such folder"):
        attempt(tmp_path / "none")
