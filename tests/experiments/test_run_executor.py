"""Runs executed here, on Ray and as SLURM tasks: where they are, how far, what they cost, and how failures are kept."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from sam2_3dmed.baselines.nnunet.system import NNUNET
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import ConfigError, TrainingError
from sam2_3dmed.experiments import run_executor
from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.reproduce import reproduce
from sam2_3dmed.experiments.resource_meter import ResourceUsage
from sam2_3dmed.experiments.run_executor import (
    RunStatus,
    execute_run,
    measure_prediction,
    num_parameters,
    run_on_ray,
    run_on_slurm,
    run_sequentially,
)


@pytest.fixture
def run(request_for):
    return plan_experiment(request_for(4, methods=("full",))).runs[0]


def test_states_follow_what_is_in_the_folder(run, tmp_path, finish):
    place = RunStatus.find(run, tmp_path)
    assert place.state == "missing"
    place.folder.mkdir(parents=True)
    (place.folder / "config.yaml").write_text("")
    assert place.state == "begun"
    (place.folder / "model.safetensors").write_bytes(b"")
    assert place.state == "trained"
    finish(run, tmp_path, [0.5])
    assert place.state == "done"
    place.add_cost(prediction={}, test={})
    assert place.cost["training"]["seconds"] == 60
    (place.folder / "cost.json").write_text("{")
    assert place.state == "trained"


def test_a_run_is_found_under_the_name_that_another_table_gave_it(run, tmp_path):
    folder = tmp_path / "runs" / run.task.name / f"slices_6-seed0-{run.key}"
    folder.mkdir(parents=True)
    assert RunStatus.find(run, tmp_path).folder == folder
    assert RunStatus.find(replace(run, seed=1, weights="x.pt"), tmp_path).folder.name.startswith("full-seed1-")


def test_a_failure_is_told_and_the_next_attempt_forgets_it(run, tmp_path):
    (run.task.folder / "dataset.json").stat()
    broken = replace(run, weights=str(tmp_path / "no-such-weights.pt"))
    place = execute_run(broken, tmp_path)
    assert place.state == "missing"
    assert "no-such-weights.pt" in place.failure
    place.folder.joinpath("failure.txt").write_text("an old one")
    assert "no-such-weights.pt" in execute_run(broken, tmp_path).failure


def test_what_no_one_foresaw_is_told_in_a_line_with_the_details_below(run, tmp_path):
    broken = replace(run, config=run.config.model_copy(update={"slab_slices": -1}))
    place = execute_run(broken, tmp_path)
    assert place.failure.split(": ")[0] in ("ValueError", "IndexError", "RuntimeError", "AssertionError")
    assert "Traceback" in (place.folder / "failure.txt").read_text()


def test_usage_adds_up_over_interruptions():
    before = {"seconds": 10.0, "memory_mb": 500.0, "gpu_memory_mb": None, "energy_kj": 1.5}
    added = run_executor._add_usage(before, ResourceUsage(5.0, 400.0, None, 0.5))
    assert added == {"seconds": 15.0, "memory_mb": 500.0, "gpu_memory_mb": None, "energy_kj": 2.0}
    assert run_executor._add_usage({}, ResourceUsage(5.0))["seconds"] == 5.0


def test_a_run_notes_every_machine_that_it_was_on_once(run, tmp_path, monkeypatch):
    broken = replace(run, weights=str(tmp_path / "no-such-weights.pt"))
    for name in ("fast", "slow", "fast"):
        monkeypatch.setattr(run_executor, "hardware", lambda name=name: {"processor": name})
        place = execute_run(broken, tmp_path)
    assert place.cost["hardware"] == [{"processor": "fast"}, {"processor": "slow"}]
    assert RunStatus(tmp_path / "new").cost == {}


def test_nnunets_memory_in_training_is_its_process_s(run, tmp_path, monkeypatch):
    place = RunStatus.find(replace(run, system="nnunet"), tmp_path)
    place.add_cost(training={"seconds": 10.0, "memory_mb": 800.0, "gpu_memory_mb": None, "energy_kj": None})
    (place.folder / "nnunet").mkdir()
    (place.folder / "nnunet" / "memory.json").write_text(json.dumps({"peak_mb": 12.5, "gpu_peak_mb": 34.5}))
    monkeypatch.setattr(run_executor, "train", lambda request: None)
    run_executor._train(replace(run, system="nnunet"), place, tmp_path)
    assert (place.cost["training"]["memory_mb"], place.cost["training"]["gpu_memory_mb"]) == (800.0, 34.5)
    assert place.cost["training"]["seconds"] > 10.0


def test_errors_of_training_are_users_errors(run, tmp_path):
    place = RunStatus.find(run, tmp_path)
    place.fail(str(TrainingError("the loss is not\nfinite")), "details")
    assert place.failure == "the loss is not finite"
    assert json.dumps(place.cost) == "{}"


@pytest.fixture
def tested(blob_run, blobs, tmp_path, monkeypatch):
    """A run with a split, where a prediction takes 1 second, 2 MB, and 3 MB of a GPU, of this process."""

    @contextmanager
    def measure_resources():
        yield ResourceUsage(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setattr(run_executor, "measure_resources", measure_resources)
    names = [case.name for case in read_dataset(blobs).cases]
    folder = shutil.copytree(blob_run, tmp_path / "run")
    Split(tuple(names[:2]), (names[2],), (names[3],)).write(folder / "split.json")
    return folder


def test_memory_is_this_process_s(tested, blobs):
    found = measure_prediction(tested, blobs)
    assert found["case"] == "blob_03"
    assert found["voxels"] == 24 * 28 * 7
    assert found["gflop"] > 0.1
    assert [found[name] for name in ("seconds", "memory_mb", "gpu_memory_mb", "energy_kj")] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("memory", [(700.0, 70.0), (700.0, None), (None, None)])
def test_of_nnunet_both_memories_are_its_process_s(tested, blobs, monkeypatch, memory):
    class Theirs:
        def __call__(self, volume, probabilities=None, *, reference=None):
            return volume

        def cost_of(self, volume):
            return 2.5, *memory

    monkeypatch.setattr(run_executor, "load_model", lambda folder: Theirs())
    monkeypatch.setattr(run_executor, "find_system", lambda name: NNUNET)
    found = measure_prediction(tested, blobs)
    assert (found["gflop"], found["seconds"]) == (2.5, 1.0)
    assert (found["memory_mb"], found["gpu_memory_mb"]) == memory


def test_parameters_are_the_numbers_in_the_file(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(())}, tmp_path / "m.safetensors")
    assert num_parameters(tmp_path / "m.safetensors") == 12 + 5 + 1


LOCAL = {"cluster": "local", "timeout_min": 10}


@pytest.fixture
def broken(request_for, tmp_path):
    """Runs that fail at once, for lack of weights, each in its own words."""
    experiment = plan_experiment(request_for(4))
    return [replace(run, weights=str(tmp_path / f"{run.method}.pt")) for run in experiment.runs]


def test_one_by_one(broken, tmp_path):
    ended = []
    run_sequentially(broken, tmp_path, ended.append)
    assert ended == broken
    assert [f"{run.method}.pt" in RunStatus.find(run, tmp_path).failure for run in broken] == [True, True]


@pytest.mark.long
@pytest.mark.parametrize(
    ("runner", "package"),
    [(partial(run_on_ray, workers=1), "ray"), (partial(run_on_slurm, options=LOCAL), "submitit")],
    ids=["ray", "slurm"],
)
def test_a_table_is_carried_out_by_jobs(request_for, tmp_path, monkeypatch, runner, package):
    pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    request = request_for(4, out=(tmp_path / "out").relative_to(tmp_path))
    outcome = reproduce(request, runner)
    assert outcome.failures == ()
    assert "not run yet" not in outcome.text
    assert [RunStatus.find(run, tmp_path / "out").state for run in plan_experiment(request).runs] == ["done", "done"]
    assert reproduce(request, None).text == outcome.text, "nothing is left, so no runner is called"


def dies(run, out):
    """A job that the system kills."""
    os._exit(9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("runner", "package", "words"),
    [
        (partial(run_on_ray, workers=1), "ray", "WorkerCrashedError: "),
        (partial(run_on_slurm, options=LOCAL), "submitit", "the same command does what is missing"),
    ],
    ids=["ray", "slurm"],
)
def test_jobs_that_die_are_failures(broken, tmp_path, monkeypatch, runner, package, words):
    pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.setattr(run_executor, "execute_run", dies)
    pickling = pytest.importorskip("ray.cloudpickle" if package == "ray" else "cloudpickle")
    pickling.register_pickle_by_value(sys.modules[__name__])  # other processes cannot import it
    ended = []
    try:
        runner(broken[:1], tmp_path, ended.append)
    finally:
        pickling.unregister_pickle_by_value(sys.modules[__name__])
    assert [run.key for run in ended] == [broken[0].key]
    assert words in RunStatus.find(broken[0], tmp_path).failure


def test_without_the_extra(monkeypatch, broken, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'sam2-3dmed\[ray\]'"):
        run_on_ray(broken, tmp_path, list, workers=1)
