"""Where runs are, how far they are, and that a failure is told."""

import json
from dataclasses import replace

import pytest

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.experiments import run_executor as work
from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.resource_meter import Usage
from sam2_3dmed.experiments.run_executor import Place, carry_out


@pytest.fixture
def run(request_for):
    return plan_experiment(request_for(4, methods=("full",))).runs[0]


def test_states_follow_what_is_in_the_folder(run, tmp_path, finish):
    place = Place.of(run, tmp_path)
    assert place.state == "missing"
    place.folder.mkdir(parents=True)
    (place.folder / "config.yaml").write_text("")
    assert place.state == "begun"
    (place.folder / "model.safetensors").write_bytes(b"")
    assert place.state == "trained"
    finish(run, tmp_path, [0.5])
    assert place.state == "done"
    place.note(prediction={}, test={})
    assert place.cost["training"]["seconds"] == 60
    (place.folder / "cost.json").write_text("{")
    assert place.state == "trained"


def test_a_run_is_found_under_the_name_that_another_table_gave_it(run, tmp_path):
    folder = tmp_path / "runs" / run.task.name / f"slices_6-seed0-{run.key}"
    folder.mkdir(parents=True)
    assert Place.of(run, tmp_path).folder == folder
    assert Place.of(replace(run, seed=1, weights="x.pt"), tmp_path).folder.name.startswith("full-seed1-")


def test_a_failure_is_told_and_the_next_attempt_forgets_it(run, tmp_path):
    (run.task.folder / "dataset.json").stat()
    broken = replace(run, weights=str(tmp_path / "no-such-weights.pt"))
    place = carry_out(broken, tmp_path)
    assert place.state == "missing"
    assert "no-such-weights.pt" in place.failure
    place.folder.joinpath("failure.txt").write_text("an old one")
    assert "no-such-weights.pt" in carry_out(broken, tmp_path).failure


def test_what_no_one_foresaw_is_told_in_a_line_with_the_details_below(run, tmp_path):
    broken = replace(run, config=run.config.model_copy(update={"slab_slices": -1}))
    place = carry_out(broken, tmp_path)
    assert place.failure.split(": ")[0] in ("ValueError", "IndexError", "RuntimeError", "AssertionError")
    assert "Traceback" in (place.folder / "failure.txt").read_text()


def test_usage_adds_up_over_interruptions():
    before = {"seconds": 10.0, "memory_mb": 500.0, "gpu_memory_mb": None, "energy_kj": 1.5}
    added = work._added(before, Usage(5.0, 400.0, None, 0.5))
    assert added == {"seconds": 15.0, "memory_mb": 500.0, "gpu_memory_mb": None, "energy_kj": 2.0}
    assert work._added(None, Usage(5.0))["seconds"] == 5.0


def test_a_run_notes_every_machine_that_it_was_on_once(run, tmp_path, monkeypatch):
    broken = replace(run, weights=str(tmp_path / "no-such-weights.pt"))
    for name in ("fast", "slow", "fast"):
        monkeypatch.setattr(work, "hardware", lambda name=name: {"processor": name})
        place = carry_out(broken, tmp_path)
    assert place.cost["hardware"] == [{"processor": "fast"}, {"processor": "slow"}]
    assert work.Place(tmp_path / "new").cost == {}


def test_nnunets_memory_in_training_is_its_process_s(run, tmp_path, monkeypatch):
    place = Place.of(replace(run, system="nnunet"), tmp_path)
    place.note(training={"seconds": 10.0, "memory_mb": 800.0, "gpu_memory_mb": None, "energy_kj": None})
    (place.folder / "nnunet").mkdir()
    (place.folder / "nnunet" / "memory.json").write_text(json.dumps({"peak_mb": 12.5, "gpu_peak_mb": 34.5}))
    monkeypatch.setattr(work, "train_run", lambda request: None)
    work._train(replace(run, system="nnunet"), place, tmp_path)
    assert (place.cost["training"]["memory_mb"], place.cost["training"]["gpu_memory_mb"]) == (800.0, 34.5)
    assert place.cost["training"]["seconds"] > 10.0


def test_errors_of_training_are_users_errors(run, tmp_path):
    place = Place.of(run, tmp_path)
    work.note_failure(place, str(TrainingError("the loss is not\nfinite")), "details")
    assert place.failure == "the loss is not finite"
    assert json.dumps(place.cost) == "{}"
