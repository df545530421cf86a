"""What a table says it was made of."""

import hashlib
import json
import shutil

from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.reproduce import data_checksums, manifest, write_manifest
from sam2_3dmed.experiments.run_executor import RunStatus
from sam2_3dmed.run.run_folder import read_record


def test_holds_what_was_asked_and_what_came_of_it(request_for, finish):
    experiment = plan_experiment(request_for(4, seeds=2))
    folder = finish(experiment.runs[0], experiment.request.out, [0.5, 0.6])
    split = {"train": ["a"], "validation": ["b"], "test": ["c"]}
    (folder / "split.json").write_text(json.dumps(split))
    content = manifest(experiment)
    (name,) = content["data"]
    assert content["data"][name]["split"] == split
    assert len(content["data"][name]["files_sha256"]) == 24
    assert [(run["method"], run["seed"], run["state"]) for run in content["runs"]] == [
        ("without_srpp", 0, "done"),
        ("full", 0, "missing"),
        ("without_srpp", 1, "missing"),
        ("full", 1, "missing"),
    ]
    assert content["runs"][0]["hours"] == 66 / 3600
    assert {"python", "torch", "sam2-3dmed"} <= set(content["versions"])
    assert content["hardware"]["processors"] >= 1
    assert content["asked"]["epochs"] == 1
    write_manifest(experiment, experiment.request.out / "table_4")
    assert json.loads((experiment.request.out / "table_4" / "manifest.json").read_text()) == content


def test_holds_the_tasks_and_methods_that_were_asked_for(request_for, blobs):
    request = request_for(4, data=blobs.parent, tasks=(blobs.name,), methods=("full", "sam2"))
    asked = manifest(plan_experiment(request))["asked"]
    assert (asked["tasks"], asked["methods"]) == ([blobs.name], ["full", "sam2"])


def test_each_run_has_its_versions_and_machines(request_for, finish, blob_run):
    experiment = plan_experiment(request_for(4))
    run, out = experiment.runs[0], experiment.request.out
    folder = finish(run, out, [0.5])
    machines = [{"processor": "an old one", "gpus": []}, {"processor": "a new one", "gpus": ["H200"]}]
    RunStatus.find(run, out).add_cost(hardware=machines)
    read_record(blob_run).model_copy(update={"versions": {"torch": "1.2.3"}}).write(folder)
    there, missing = manifest(experiment)["runs"]
    assert (there["versions"], there["hardware"]) == ({"torch": "1.2.3"}, machines)
    assert set(there["cost"]) == {"training", "test", "prediction"}
    assert (missing["versions"], missing["hardware"]) == (None, [])


def test_checksums_are_of_the_files_and_follow_a_change(request_for, blobs, tmp_path):
    data = tmp_path / "copy"
    shutil.copytree(blobs, data)
    experiment = plan_experiment(request_for(4, data=data))
    file = data / "labelsTr" / "blob_03.nii.gz"
    sums = data_checksums(experiment)[experiment.tasks[0].name]
    assert sums["labelsTr/blob_03.nii.gz"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert data_checksums(experiment)[experiment.tasks[0].name] == sums
    file.write_bytes(file.read_bytes() + b"x")
    changed = data_checksums(experiment)[experiment.tasks[0].name]
    assert {name for name in sums if sums[name] != changed[name]} == {"labelsTr/blob_03.nii.gz"}
