"""The real nnU-Net, in its environment, which takes minutes to make: SAM2_3DMED_NNUNET names one that is there."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from sam2_3dmed.baselines.nnunet import environment
from sam2_3dmed.baselines.nnunet.environment import Worker
from sam2_3dmed.baselines.nnunet.run import FOLDER, training_peaks
from sam2_3dmed.baselines.nnunet.system import NNUNET
from sam2_3dmed.cli.main import app
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.evaluation.cases import evaluate_folders
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.processes.signals import Terminated
from sam2_3dmed.run.run_folder import load_model
from sam2_3dmed.run.train import TrainRequest, test_run, train
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume

test_run.__test__ = False  # a function of the package, not a test
pytestmark = pytest.mark.long
SCHEME = LabelScheme({1: "bright", 3: "dark"})


@pytest.fixture(scope="module", autouse=True)
def real(tmp_path_factory):
    """Made by `baselines setup nnunet`, unless it is there."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # which all processes of a test run share
    with pytest.MonkeyPatch.context() as patch:
        if environment.VARIABLE not in os.environ:
            patch.setenv(environment.VARIABLE, str(root / "nnunet-environment"))
        with FileLock(root / "nnunet-environment.lock"):
            if not (environment.environment_folder() / environment._READY).is_file():
                result = CliRunner().invoke(app, ["baselines", "setup", "nnunet"], catch_exceptions=False)
                assert result.exit_code == 0, result.output
                assert "nnunetv2 2." in result.output
        yield


def request(data: Path, out: Path, *settings: str, resume: bool = False) -> TrainRequest:
    return TrainRequest(data, out, recipe=NNUNET.recipe(settings=settings), system="nnunet", resume=resume)


@pytest.fixture(scope="module")
def run(real, blobs, tmp_path_factory):
    """Trained for a few steps; the balls are so plain that they begin to show."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(request(blobs, out, "training.epochs=3", "training.steps_per_epoch=6"))


def results(run):
    """nnU-Net's own folder of its one fold."""
    (fold,) = (run / FOLDER / "results").glob("*/*/fold_0")
    return fold


def test_it_trains_and_is_scored(run, blobs):
    evaluation = test_run(run, blobs)
    assert len(evaluation.cases) == 2
    with (run / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [6, 12, 18]
    assert float(rows[-1]["loss/train"]) < float(rows[0]["loss/train"])


def test_its_memory_is_its_own(run, blobs):
    """Not that of the process that starts it, which has more by far."""
    held = np.ones(3_000_000_000 // 8)
    volume = Volume.read(read_dataset(blobs).cases[0].images[0])
    memory_mb, gpu_memory_mb = training_peaks(run)
    gflop, prediction_mb, prediction_gpu_mb = load_model(run).cost_of(volume)
    assert held.nbytes == 3_000_000_000
    assert gflop > 0
    assert memory_mb > 100
    assert 100 < prediction_mb < 3000
    assert (gpu_memory_mb is None) == (prediction_gpu_mb is None) == (not torch.cuda.is_available())


def test_our_scores_of_its_predictions_are_its_own(run, blobs, tmp_path):
    """Of what nnU-Net predicts of the validation cases itself, and writes a summary of."""
    fold = results(run)
    labels = {case.name: case.label for case in read_dataset(blobs).cases}
    truth = tmp_path / "truth"
    truth.mkdir()
    for prediction in (fold / "validation").glob("*.nii.gz"):
        label = Volume.read(labels[prediction.name.removesuffix(".nii.gz")])
        label.with_array(SCHEME.to_indices(label.array)).write(truth / prediction.name)
    call = ["evaluate", str(fold / "validation"), str(truth), "-o", str(tmp_path / "scores"), "--empty", "nan"]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ours = json.loads((tmp_path / "scores" / "summary.json").read_text())["results"]
    theirs = json.loads((fold / "validation" / "summary.json").read_text())["mean"]
    for value in ("1", "2"):
        found = next(row["dice"]["mean"] for row in ours if row["class"] == value)
        assert found == pytest.approx(theirs[value]["Dice"], abs=1e-9)
        assert found > 0.5, "it has learnt something to be scored"


def test_classes_that_are_nowhere_or_missed_or_invented_count_as_there(tmp_path):
    """nnU-Net's own scores of masks made by hand: class 2 absent from both, from the truth, and from the mask."""
    rng = np.random.default_rng(0)
    for number, gone in enumerate([(), ("truth", "masks"), ("truth",), ("masks",)]):
        for folder in ("truth", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = rng.integers(0, 2 if folder in gone else 3, (9, 8, 7)).astype(np.uint8)
            Volume(array, np.eye(4)).write(tmp_path / folder / f"{number}.nii")
    code = (
        "from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple as compute\n"
        "if __name__ == '__main__': compute('truth', 'masks', [1, 2], num_processes=1)\n"
    )
    (tmp_path / "theirs.py").write_text(code)
    subprocess.run([environment.find_python(), "theirs.py"], cwd=tmp_path, check=True, capture_output=True)
    theirs = json.loads((tmp_path / "masks" / "summary.json").read_text())["mean"]
    evaluation = evaluate_folders(tmp_path / "masks", tmp_path / "truth", empty="nan")
    ours = {row["class"]: row["dice"]["mean"] for row in evaluation.summary()["results"]}
    for value in ("1", "2"):
        assert ours[value] == pytest.approx(theirs[value]["Dice"], abs=1e-9)
    assert 0.1 < ours["2"] < 0.2  # a third of one case, and zeros of two


def test_our_predictor_predicts_what_nnunet_does(run, blobs):
    predictor = load_model(run)
    images = {case.name: case.images[0] for case in read_dataset(blobs).cases}
    own = list((results(run) / "validation").glob("*.nii.gz"))
    assert own
    for prediction in own:
        mask = predictor(Volume.read(images[prediction.name.removesuffix(".nii.gz")]))
        classes = Volume.read(prediction).array
        np.testing.assert_array_equal(SCHEME.to_indices(mask.array), classes)


def test_probabilities_agree_with_the_mask(run, blobs, tmp_path):
    case = read_dataset(blobs).cases[0]
    volume = Volume.read(case.images[0])
    mask = load_model(run)(volume, probabilities=tmp_path / "case")
    shares = [Volume.read(tmp_path / f"case_{name}.nii.gz").array for name in ("bright", "dark")]
    for value, share in zip((1, 3), shares, strict=True):
        assert (share[mask.array == value] >= 1 / 3 - 1 / 255).all()
        assert (share[mask.array != value] <= 0.5 + 1 / 255).all()


def test_minutes_are_planned_once_and_a_stopped_run_goes_on(blobs, tmp_path, monkeypatch):
    settings = ["training.minutes=0.5", "training.steps_per_epoch=2"]
    answers = Worker.answers

    def until_the_second_epoch(self):
        for answer in answers(self):
            yield answer
            if answer.get("epoch") == 2:
                raise Terminated

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "answers", until_the_second_epoch)
        with pytest.raises(Terminated):
            train(request(blobs, tmp_path / "run", *settings))
    epochs, steps = json.loads((results(tmp_path / "run") / "schedule.json").read_text())
    assert 2 < epochs <= 1000
    assert steps == 2
    run = train(request(blobs, tmp_path / "run", *settings, resume=True))
    with (run / "curves.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [steps * n for n in range(1, epochs + 1)]


def test_regions_and_voxels_to_be_ignored(real, blobs, tmp_path):
    """Both balls are a region, painted as 3, with the bright one in it; the first plane was not annotated (7)."""
    data = Path(shutil.copytree(blobs, tmp_path / "data"))
    for file in (data / "labelsTr").iterdir():
        label = Volume.read(file)
        array = label.array.copy()
        array[0] = 7
        label.with_array(array).write(file)
    content = json.loads((data / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "both": [1, 3], "bright": 1, "ignore": 7}, "regions_class_order": [3, 1]}
    (data / "dataset.json").write_text(json.dumps(content))
    run = train(request(data, tmp_path / "run", "training.epochs=3", "training.steps_per_epoch=6"))
    assert all(set(np.unique(Volume.read(case.prediction).array)) <= {0, 1, 3} for case in test_run(run, data).cases)
    scheme = read_dataset(data).labels
    theirs = json.loads((results(run) / "validation" / "summary.json").read_text())
    predictor, cases = load_model(run), {case.name: case for case in read_dataset(data).cases}
    for result in theirs["metric_per_case"]:
        own = Volume.read(result["prediction_file"])
        case = cases[Path(result["prediction_file"]).name.removesuffix(".nii.gz")]
        mask = predictor(Volume.read(case.images[0]), probabilities=tmp_path / "case")
        np.testing.assert_array_equal(scheme.to_indices(mask.array), own.array)
        both, bright = (Volume.read(tmp_path / f"case_{name}.nii.gz").array > 0.5 for name in ("both", "bright"))
        np.testing.assert_array_equal(mask.array, np.where(bright, 1, np.where(both, 3, 0)))
        rows = case_metrics(mask.array, Volume.read(case.label).array, scheme, mask.spacing_mm, Scoring(empty="nan"))
        for row, region in zip(rows, ("(1, 2)", "(1,)"), strict=False):
            assert row.scores["dice"] == pytest.approx(result["metrics"][region]["Dice"], abs=1e-9)
            assert row.scores["dice"] > 0.3, "it has learnt something to be scored"
