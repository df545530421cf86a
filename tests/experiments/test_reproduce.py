"""A small table from data to text, stopped and gone on with."""

import json
import shutil
from dataclasses import replace

import pytest

from sam2_3dmed.experiments import run_executor
from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.reproduce import describe, reproduce
from sam2_3dmed.experiments.run_executor import RunStatus
from sam2_3dmed.run.run_folder import read_record

HOW = "a finished run of the row tells how long it takes"


def small(request_for, out, **changes):
    return request_for(1, methods=("medsam2", "nnunet", "full"), out=out, **changes)


@pytest.fixture
def first(request_for, tmp_path):
    """A table stopped before its second run, and then gone on with: the request, and the outcome."""
    request = replace(small(request_for, tmp_path / "out"), methods=("medsam2", "full"))
    execute_run, called = run_executor.execute_run, []

    def stop_at_second(run, out):
        called.append(run.method)
        if len(called) == 2:
            raise KeyboardInterrupt
        return execute_run(run, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_executor, "execute_run", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            reproduce(request)
    return request


def test_a_table_is_stopped_and_goes_on(first, blobs):
    folder = first.out / "table_1"
    text = (folder / "table.md").read_text()
    assert "SAM2-3dMed: seed 0: not run yet" in text
    runs = {run.method: run for run in plan_experiment(first).runs}
    places = {method: RunStatus.find(run, first.out) for method, run in runs.items()}
    assert {method: place.state for method, place in places.items()} == {"medsam2": "done", "full": "missing"}
    assert "medsam2" in describe(first)
    assert describe(first).endswith(f"2 runs; of 1 nothing is known yet: {HOW}, or --minutes sets it")
    model = places["medsam2"].folder / "model.safetensors"
    before = model.stat().st_mtime_ns

    outcome = reproduce(replace(first, methods=("medsam2", "nnunet", "full")))

    assert model.stat().st_mtime_ns == before  # what is finished is not done again
    assert outcome.failures == ()
    assert "nnU-Net" in outcome.text
    assert outcome.text == (folder / "table.md").read_text()
    picture = f"![{blobs.name}: mean Dice against GFLOP a volume](accuracy_and_cost_{blobs.name}.png)"
    assert picture in outcome.text
    assert "![" not in text, "one row is no picture"
    assert {path.name for path in folder.iterdir()} == {
        "table.md",
        "table.csv",
        "table.tex",
        "manifest.json",
        f"accuracy_and_cost_{blobs.name}.png",
        f"accuracy_and_cost_{blobs.name}.svg",
    }
    cost = places["full"].cost
    assert cost["prediction"]["parameters"] > places["medsam2"].cost["prediction"]["parameters"] > 1e5
    assert cost["prediction"]["gflop"] > places["medsam2"].cost["prediction"]["gflop"] > 0.1
    assert cost["training"]["seconds"] > 0
    summary = json.loads((places["full"].folder / "evaluation" / "summary.json").read_text())
    shown = f"{next(r for r in summary['results'] if r['kind'] == 'mean')['dice']['mean']:.4f}"
    line = next(line for line in outcome.text.splitlines() if line.startswith("| SAM2-3dMed"))
    assert line.split("|")[2].split("·")[1].replace("*", "").split()[0] == shown

    # Another table's run of the same content is the same run, and a run that broke off goes on.
    model.unlink()
    shutil.rmtree(places["medsam2"].folder / "evaluation")
    assert places["medsam2"].state == "begun"
    seconds = places["medsam2"].cost["training"]["seconds"]
    again = reproduce(replace(first, table=4, methods=("full", "medsam2")))
    assert again.failures == ()
    assert places["medsam2"].state == "done"
    assert places["medsam2"].cost["training"]["seconds"] > seconds
    assert len(list((first.out / "runs" / blobs.name).glob("*-seed0-*"))) == 2


def test_a_dry_run_says_what_is_shared_and_how_long_it_takes(request_for, finish):
    request = request_for(2, epochs=None, minutes=5.0)
    text = describe(request)
    assert "without_pretraining = full" in text
    assert text.count("about 5 min") == 3
    assert text.endswith("3 runs; what is left takes about 0.2 hours")
    assert not (request.out / "runs").exists()
    run = plan_experiment(request).runs[0]
    finish(run, request.out, [0.5, 0.5])
    assert describe(request).endswith("3 runs; what is left takes about 0.2 hours")
    assert describe(request).count("done") == 1


def test_a_finished_seed_tells_how_long_the_next_takes(request_for, finish):
    request = request_for(4, methods=("full",), seeds=2)
    finish(plan_experiment(request).runs[0], request.out, [0.5, 0.5], seconds=534.0)
    assert describe(request).splitlines()[1].endswith("about 9 min")
    assert describe(request).endswith("2 runs; what is left takes about 0.1 hours")
    finish(plan_experiment(request).runs[1], request.out, [0.5, 0.5])
    assert describe(request).endswith("2 runs; all are done")


def test_what_is_not_known_is_not_called_no_time(request_for, finish):
    request = request_for(4)
    text = describe(request)
    assert "hours" not in text
    assert text.count("missing  ?") == 2
    assert text.endswith(f"2 runs; of 2 nothing is known yet: {HOW}, or --minutes sets it")
    run = plan_experiment(replace(request, seeds=2)).runs[0]
    finish(run, request.out, [0.5, 0.5], seconds=30.0)
    text = describe(replace(request, seeds=2))
    assert f"4 runs; what is left takes less than 0.1 hours, and of 2 nothing is known yet: {HOW}" in text


@pytest.fixture
def elsewhere(request_for, blobs, blob_run, tmp_path, finish):
    """Finishes a run of the whole method on other data, of so many epochs or minutes, in 600 s, and the test in 6."""
    data = shutil.copytree(blobs, tmp_path / "more" / "Other")
    (data / "labelsTr" / "blob_03.nii.gz").write_bytes((data / "labelsTr" / "blob_04.nii.gz").read_bytes() + b"x")

    def make(**told) -> None:
        run = plan_experiment(request_for(4, data=data, methods=("full",))).runs[0]
        folder = finish(run, tmp_path / "out", [0.5, 0.5], seconds=600.0)
        record = read_record(blob_run)
        training = record.recipe.training.model_copy(update=told)
        recipe = record.recipe.model_copy(update={"training": training})
        record.model_copy(update={"recipe": recipe}).write(folder)

    return make


def test_a_finished_run_on_other_data_is_a_rough_measure(request_for, elsewhere, finish):
    elsewhere(epochs=4)
    request = request_for(4, epochs=10)
    text = describe(request)
    assert text.count("about 25 min, rough") == 1, "600 s for 4 epochs are 1500 s for 10; and 6 s for the test"
    assert text.count("missing  ?") == 1, "the other row has no run anywhere"
    assert "2 runs; what is left takes about 0.4 hours (rough: by runs on other data or with other settings)" in text
    full = next(run for run in plan_experiment(request).runs if run.method == "full")
    place = RunStatus.find(full, request.out)
    place.add_cost(training={"seconds": 900.0})
    assert "about 10 min, rough" in describe(request), "600 s are left"
    (place.folder / "model.safetensors").write_bytes(b"")
    assert "about 0 min, rough" in describe(request), "the test alone is left"
    assert "about 5 min" in describe(replace(request, epochs=None, minutes=5.0))
    finish(full, request.out, [0.5], seconds=60.0)
    assert "rough" not in describe(replace(request, seeds=2)), "a run of the row itself is better"


def test_a_run_of_so_many_minutes_says_nothing_of_epochs(request_for, elsewhere):
    elsewhere(epochs=4, minutes=10.0)
    assert describe(request_for(4, epochs=10)).count("missing  ?") == 2
