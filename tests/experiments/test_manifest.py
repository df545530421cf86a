"""What a table says it was made of."""

import hashlib
import json
import shutil

from sam2_3dmed.experiments.manifest import data_checksums, manifest, write_manifest
from sam2_3dmed.experiments.planning import plan_experiment


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
