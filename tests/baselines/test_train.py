"""Every system from data set to scores; a run that stops goes on exactly; the plan of a run is kept."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam2_3dmed.baselines.recipe import PatchRecord, PatchSpec
from sam2_3dmed.baselines.train import first_network, plan_spec
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.processes.signals import Terminated
from sam2_3dmed.report.build import write_report
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, read_record, read_weights
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.run.train import TrainRequest, test_run, train
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume, same_grid

test_run.__test__ = False  # a function of the package, not a test

QUICK = ["model.size=small", "training.epochs=1", "training.samples_per_epoch=4", "training.workers=0"]


def request(system: str, data: Path, out: Path, *settings: str, **more: Any) -> TrainRequest:
    return TrainRequest(
        data, out, recipe=find_system(system).recipe(settings=[*QUICK, *settings]), system=system, **more
    )


@pytest.mark.parametrize("system", ["unet", "mednext_s", "nnformer", pytest.param("universal", marks=pytest.mark.long)])
def test_from_data_to_scores(system: str, blobs: Path, tmp_path: Path) -> None:
    if "einops" in find_system(system).packages:
        pytest.importorskip("einops")
    run = train(request(system, blobs, tmp_path / "run"))
    record = read_record(run)
    assert isinstance(record, PatchRecord)
    assert (record.system, record.model.system, record.weights) == (system, system, "none")
    assert record.model.text == ("learnt" if system == "universal" else None)
    evaluation = test_run(run, blobs)
    assert len(evaluation.cases) == 2
    for case in evaluation.cases:
        image = Volume.read(blobs / "imagesTr" / f"{case.name}.nii.gz")
        assert same_grid(read_label(case.prediction, {1, 3}), image)
    names = {path.name for path in run.iterdir()}
    assert {"model.safetensors", "config.yaml", "split.json", "curves.csv", "data.json", "log.txt"} < names
    assert json.loads((run / "evaluation" / "summary.json").read_text())["cases"] == 2
    assert write_report(run).is_file()


@pytest.mark.long
@pytest.mark.parametrize(
    ("system", "epochs", "least"), [("unet", 8, 0.8), ("mednext_s", 16, 0.8), ("nnformer", 16, 0.5)]
)
def test_the_balls_are_learnt(system: str, epochs: int, least: float, blobs: Path, tmp_path: Path) -> None:
    settings = [f"training.epochs={epochs}", "training.samples_per_epoch=16", "training.validate_every=4"]
    if system == "nnformer":  # its own recipe needs some hundred steps to begin
        settings += ["training.optimizer=adamw", "training.learning_rate=0.001", "training.precision=32"]
    run = train(request(system, blobs, tmp_path / "run", *settings))
    mean = next(row for row in test_run(run, blobs).summary()["results"] if row["kind"] == "mean")
    assert mean["dice"]["mean"] > least


@pytest.mark.long
def test_two_processes_train_to_the_weights_of_one(blobs: Path, tmp_path: Path) -> None:
    settings = [*QUICK, "training.epochs=2", "training.samples_per_epoch=5", "training.batch_size=2"]
    settings += ["training.precision=32"]  # in bf16, sums in another order differ by more than the limit
    alone = train(request("unet", blobs, tmp_path / "alone", *settings))
    command = [sys.executable, "-m", "sam2_3dmed", "train", str(blobs), "--system", "unet", "--devices", "2"]
    command += ["--out", str(tmp_path / "two"), *(word for setting in settings for word in ("--set", setting))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert answer.returncode == 0, answer.stderr
    expected, found = read_weights(alone / MODEL_FILE), read_weights(tmp_path / "two" / MODEL_FILE)
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-5
    assert any((expected[name] != found[name]).any() for name in expected)  # they are not one run


def test_a_run_that_stops_goes_on_exactly(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the network that leaves out paths at random."""
    settings = ["training.epochs=3", "training.samples_per_epoch=2", "training.validate_every=2"]
    straight = train(request("nnformer", blobs, tmp_path / "straight", *settings))
    from sam2_3dmed.training.loop import TrainingLoop

    save = TrainingLoop._save

    def then_stop(self: TrainingLoop) -> None:
        save(self)
        if self.progress.epoch == 2:
            raise Terminated

    monkeypatch.setattr(TrainingLoop, "_save", then_stop)
    with pytest.raises(Terminated):
        train(request("nnformer", blobs, tmp_path / "stopped", *settings))
    monkeypatch.setattr(TrainingLoop, "_save", save)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    stopped = train(TrainRequest(blobs, tmp_path / "stopped", resume=True))
    expected, found = (read_weights(run / "model.safetensors") for run in (straight, stopped))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (stopped / "curves.csv").read_text() == (straight / "curves.csv").read_text()


def test_minutes_become_epochs(blobs: Path, tmp_path: Path) -> None:
    settings = ["training.minutes=0.02", "training.epochs=2", "training.validate_every=2"]
    run = train(request("unet", blobs, tmp_path / "run", *settings))
    schedule = json.loads((run / "schedule.json").read_text())
    assert schedule["epochs"] >= 2
    assert (
        f"{schedule['epochs'] * schedule['batches']} steps in {schedule['epochs']} epochs"
        in (run / "log.txt").read_text()
    )


def test_requests_that_cannot_be(blobs: Path, tmp_path: Path) -> None:
    for changes, line in (
        ({"system": "mednext_s"}, "^this recipe is for unet, not for mednext_s"),
        ({"system": "sam2_3dmed"}, "^this recipe is for unet, not for sam2_3dmed"),
        ({"system": "unett"}, "^no system 'unett'; did you mean 'unet'"),
        ({"weights": "auto.pt"}, r"^--weights auto\.pt: unet starts without weights"),
        ({"gpu_memory": 8.0}, "^--gpu-memory is for sam2_3dmed"),
    ):
        asked = TrainRequest(**{**vars(request("unet", blobs, tmp_path / "run")), **changes})
        with pytest.raises(ConfigError, match=line):
            train(asked)
    assert not (tmp_path / "run").exists()


def test_a_broken_record_of_a_network(blobs: Path, tmp_path: Path) -> None:
    run = train(request("unet", blobs, tmp_path / "run"))
    config = run / "config.yaml"
    other = shutil.copytree(run, tmp_path / "other") / "config.yaml"
    other.write_text(config.read_text().replace("out_channels: 3", "out_channels: 4"))
    with pytest.raises(WeightsError, match="not the weights of this model: size mismatch"):
        load_model(other.parent)
    other.write_text(config.read_text().replace("system: unet\nplan", "system: vnet\nplan"))
    with pytest.raises(ConfigError, match="no system 'vnet'"):
        load_model(other.parent)
    with pytest.raises(ConfigError, match="direction: not for systems that learn from patches"):
        load_model(run, direction="forward")
    with pytest.raises(ConfigError, match="--backend onnxruntime is for SAM2-3dMed, and this is U-Net"):
        load_model(run, backend="onnxruntime")


def test_a_plan_of_the_balls(make_spec: Callable[..., PatchSpec], balls: Any) -> None:
    spec = make_spec()
    assert (spec.spacing_mm, spec.patch, spec.num_classes) == ((3.0, 1.5, 1.5), (7, 28, 24), 2)
    found = spec.intensities[0]
    values = [case.cached.image[:, 0][case.cached.label > 0].astype(float) for case in balls.cases]
    every = torch.cat([torch.from_numpy(part) for part in values])
    assert (found.mean, found.std) == pytest.approx((every.mean().item(), every.std(correction=0).item()), rel=1e-6)
    assert first_network(spec, find_system("unet").recipe(), balls.plan).training


def test_names_are_embedded_where_there_is_a_clip(balls: Any, tmp_path: Path) -> None:
    config = find_system("universal").recipe(settings=["model.size=small", f"model.text={tmp_path / 'clip'}"])
    spec = plan_spec(config, balls.plan, balls.cases)
    assert (spec.text, spec.network["text"]) == ("embedded by CLIP", True)
