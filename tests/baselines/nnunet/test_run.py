"""Our side of a run of nnU-Net, with a stand-in on the other: data in, curves and weights out, stops and failures."""

import csv
import json
import shutil

import pytest

from sam2_3dmed.baselines.nnunet.run import FOLDER, training_peaks
from sam2_3dmed.baselines.nnunet.system import NNUNET
from sam2_3dmed.baselines.recipe import NnunetRecord
from sam2_3dmed.errors import ConfigError, ProcessError
from sam2_3dmed.evaluation.compare import compare_runs
from sam2_3dmed.experiments.planning import ReproduceRequest, plan_experiment
from sam2_3dmed.experiments.reproduce import manifest
from sam2_3dmed.experiments.run_executor import execute_run
from sam2_3dmed.run.run_folder import read_record
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.run.train import TrainRequest, test_run, train

test_run.__test__ = False  # a function of the package, not a test
PARTS = ("training", "test", "prediction")


def request(data, out, *settings, **more):
    config = NNUNET.recipe(settings=["training.epochs=4", *settings])
    return TrainRequest(data, out, recipe=config, system="nnunet", **more)


def epochs(run):
    with (run / "curves.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_from_data_to_scores(standin, blobs, tmp_path):
    run = train(request(blobs, tmp_path / "run"))
    record = read_record(run)
    assert isinstance(record, NnunetRecord)
    assert (record.system, record.weights) == ("nnunet", "none")
    assert record.about == "nnU-Net, 3d_fullres, patches of 8 x 16 x 16 voxels"
    assert record.versions["nnunetv2"] == "0"
    assert {"model.safetensors", "split.json", "curves.csv", "data.json", "log.txt"} < {p.name for p in run.iterdir()}
    assert epochs(run) == [0, 1, 2, 3]
    assert {p.name for p in (run / FOLDER).iterdir()} == {"results", "log.txt", "memory.json"}, (
        "the copies of the data are gone"
    )
    assert "epoch 3" in (run / FOLDER / "log.txt").read_text()
    assert training_peaks(run) == (950.0, None), "the last answer has the highest, and a CPU has no GPU's"
    evaluation = test_run(run, blobs)
    assert len(evaluation.cases) == 2
    dark = next(row for row in evaluation.summary()["results"] if row["class"] == "dark")
    assert dark["dice"]["mean"] == pytest.approx(0, abs=0.1), "the stand-in takes the bright ball for the dark one"


def test_only_training_and_validation_cases_are_shown(standin, blobs, tmp_path, monkeypatch):
    from sam2_3dmed.baselines.nnunet import run as module

    seen = {}

    def note(split, folder):
        raw = folder.parent / "raw" / "Dataset001_run"
        seen.update(split=split, images=sorted(p.name for p in (raw / "imagesTr").iterdir()))
        write(split, folder)

    write = module.write_split
    monkeypatch.setattr(module, "write_split", note)
    train(request(blobs, tmp_path / "run"))
    split = seen["split"]
    assert seen["images"] == sorted(f"{name}_0000.nii.gz" for name in (*split.train, *split.validation))


def test_a_run_that_fails_goes_on(standin, blobs, tmp_path):
    with pytest.raises(ProcessError, match=r"nnU-Net has ended: RuntimeError: out of luck \(status 1\).*log\.txt"):
        train(request(blobs, tmp_path / "run", "training.seed=13"))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert epochs(tmp_path / "run") == [0, 1]
    assert training_peaks(tmp_path / "run") == (900.0, None)
    run = train(request(blobs, tmp_path / "run", resume=True))
    assert epochs(run) == [0, 1, 2, 3]
    log = (run / FOLDER / "log.txt").read_text()
    assert [log.count(f"epoch {number}\n") for number in range(4)] == [1, 1, 1, 1]
    assert log.count("planning") == 1
    assert training_peaks(run) == (900.0, 60.0), "the highest of both parts"
    (run / FOLDER / "memory.json").write_text("{")
    assert training_peaks(run) == (None, None)


def test_its_cost_in_a_table_is_its_process_s(standin, blobs, tmp_path):
    asked = ReproduceRequest(1, blobs, tmp_path / "out", methods=("nnunet",), epochs=4)
    place = execute_run(plan_experiment(asked).runs[0], asked.out)
    assert place.failure is None
    memory = {part: (place.cost[part]["memory_mb"], place.cost[part]["gpu_memory_mb"]) for part in PARTS}
    assert memory == {"training": (950.0, None), "test": (None, None), "prediction": (700.0, 70.0)}
    assert place.cost["prediction"]["gflop"] == 2.5
    (run,) = manifest(plan_experiment(asked))["runs"]
    assert run["versions"]["nnunetv2"] == "0"
    assert len(run["hardware"]) == 1


def test_what_nnunet_cannot_plan_is_said(standin, blobs, tmp_path):
    with pytest.raises(ProcessError, match="no 3d_lowres"):
        train(request(blobs, tmp_path / "run", "model.configuration=3d_lowres"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weights": "tiny.pt"}, "--weights tiny.pt: nnunet starts without weights"),
        ({"gpu_memory": 8.0}, "--gpu-memory is for sam2_3dmed"),
        ({"devices": 2}, "--devices and --nodes: nnunet trains on one GPU here"),
    ],
)
def test_what_does_not_go_with_it(standin, blobs, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        train(request(blobs, tmp_path / "run", **more))


def test_another_systems_recipe(standin, blobs, tmp_path):
    with pytest.raises(ConfigError, match="this recipe is for unet, not for nnunet"):
        train(TrainRequest(blobs, tmp_path / "run", recipe=find_system("unet").recipe(), system="nnunet"))


def test_without_an_environment(blobs, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM2_3DMED_NNUNET", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere has none: sam2-3dmed baselines setup nnunet"):
        train(request(blobs, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_its_curves_are_drawn_and_its_runs_compared(standin, blobs, tmp_path):
    from sam2_3dmed.report.build import write_report

    run = train(request(blobs, tmp_path / "run"))
    test_run(run, blobs)
    page = write_report(run).read_text()
    assert "nnU-Net, 3d_fullres" in page
    assert json.loads((run / "evaluation" / "summary.json").read_text())["cases"] == 2
    shutil.copytree(run, tmp_path / "again")
    compared = compare_runs([run, tmp_path / "again"], ["dice"])
    assert (compared.runs, compared.cases) == (("run", "again"), 2)
