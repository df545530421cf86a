"""Which runs a table takes, and that they are shared by content."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from sam2_3dmed.config import ABLATIONS, RunConfig, SplitConfig
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import split_cases
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.experiments.planning import Task, plan_experiment, shared_plan


def options(config: RunConfig) -> dict:
    return {
        f"{section}.{key}": value
        for section, part in config.model_dump().items()
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }


def runs_by_method(experiment) -> dict:
    (task,) = experiment.tasks
    return {row.method: row.runs[task.name] for row in experiment.rows if row.runs}


@pytest.mark.parametrize("table", range(2, 10))
def test_rows_of_ablations_differ_from_the_full_method_in_one_thing(request_for, table):
    experiment = plan_experiment(request_for(table, weights="facebook/sam2.1-hiera-tiny", recipe="paper"))
    (full,) = experiment.full[experiment.tasks[0].name]
    for method, (run,) in runs_by_method(experiment).items():
        changed = {k for k, v in options(run.config).items() if v != options(full.config)[k]}
        assert len(changed) == (0 if run.key == full.key else 1)
        assert run.weights == ("none" if method == "without_pretraining" else full.weights)


def test_table_3_needs_no_runs_beside_those_of_table_2(request_for):
    keys = {number: {run.key for run in plan_experiment(request_for(number)).runs} for number in (2, 3, 4, 5)}
    assert keys[3] | keys[4] | keys[5] == keys[2]
    pretrained = [plan_experiment(request_for(n, weights="x.pt")).runs for n in (2, 3)]
    assert [len(runs) for runs in pretrained] == [4, 2]


def test_without_weights_there_is_no_pretraining_to_leave_out(request_for):
    runs = runs_by_method(plan_experiment(request_for(3)))
    assert runs["without_pretraining"][0].key == runs["full"][0].key
    runs = runs_by_method(plan_experiment(request_for(3, weights="x.pt")))
    assert runs["without_pretraining"][0].key != runs["full"][0].key


def test_the_row_of_as_many_slices_as_the_plan_has_is_the_full_one(request_for):
    experiment = plan_experiment(request_for(7, settings=()))  # the balls span 5 slices: slabs of 3
    (full,) = experiment.full[experiment.tasks[0].name]
    assert runs_by_method(experiment)["slices_3"][0].key == full.key
    assert len({run.key for run in experiment.runs}) == 3
    assert len(list((experiment.request.out / "plans").iterdir())) == 1


def test_the_key_tells_seed_budget_setting_and_data_apart(request_for, blobs: Path, tmp_path: Path):
    def key(**changes) -> str:
        return plan_experiment(request_for(4, **changes)).full[blobs.name][0].key

    other = shutil.copytree(blobs, tmp_path / blobs.name)
    assert key(data=other) == key()  # the same files elsewhere
    for file in sorted(other.glob("*Tr/blob_00.nii.gz")):
        file.unlink()
    text = (other / "dataset.json").read_text().replace('{"image": "./imagesTr/blob_00.nii.gz", "label": ', "", 1)
    (other / "dataset.json").write_text(text.replace('"./labelsTr/blob_00.nii.gz"}, ', "", 1))
    keys = [
        key(),
        key(epochs=2),
        key(epochs=None, minutes=5.0),
        key(settings=("slab_slices=3", "loss.terms.relative_position=1")),
        key(settings=("slab_slices=3", "training.seed=1")),
        key(weights="x.pt"),
        key(data=other),
    ]
    assert len(set(keys)) == len(keys)


def test_seeds_are_numbered_and_come_before_the_next_seed(request_for):
    experiment = plan_experiment(request_for(4, seeds=2))
    assert [(run.method, run.seed, run.config.training.seed) for run in experiment.runs] == [
        ("without_srpp", 0, 0),
        ("full", 0, 0),
        ("without_srpp", 1, 1),
        ("full", 1, 1),
    ]


def test_tasks_of_the_paper_have_its_folders_and_slabs(request_for, blobs: Path, tmp_path: Path):
    for name in ("Task06_Lung", "Task09_Spleen", "Mine"):
        shutil.copytree(blobs, tmp_path / "msd" / name)
    request = request_for(4, data=tmp_path / "msd", tasks=("lung", "Task09_Spleen", "Mine"), settings=())
    experiment = plan_experiment(request)
    assert [(task.name, task.column) for task in experiment.tasks] == [
        ("lung", "lung"),
        ("spleen", "spleen"),
        ("Mine", None),
    ]
    slabs = {name: runs[0].config.slab_slices for name, runs in experiment.full.items()}
    assert slabs == {"lung": 6, "spleen": 12, "Mine": 3}
    with pytest.raises(DataError, match=r"Task07_Pancreas: no such folder; --tasks chooses others$"):
        plan_experiment(dataclasses.replace(request, tasks=()))


def test_what_cannot_be_asked_for(request_for, tmp_path: Path):
    for changes, kind, message in [
        ({"minutes": 1.0}, ConfigError, "--minutes and --epochs both say"),
        ({"seeds": 0}, ConfigError, "--seeds 0: at least 1"),
        ({"methods": ("ful",)}, ConfigError, "no method 'ful'; did you mean 'full'"),
        ({"recipe": "papr"}, ConfigError, "no preset 'papr'"),
        ({"settings": ("model.siz=nano",)}, ConfigError, "no such key 'model.siz'"),
        ({"data": tmp_path / "gone"}, DataError, "gone: no such folder"),
        ({"data": tmp_path, "tasks": (".",)}, DataError, "not a data set"),
    ]:
        with pytest.raises(kind, match=message):
            plan_experiment(request_for(4, **changes))


def test_a_system_that_is_not_here_is_a_row_with_a_reason(request_for):
    experiment = plan_experiment(request_for(1, methods=("nnunet", "full")))
    assert "sam2-3dmed baselines setup nnunet" in experiment.rows[0].problem
    assert experiment.rows[1].problem is None
    assert [run.method for run in experiment.runs] == ["full"]


def test_the_table_of_single_changes_is_whole():
    assert {"slices_3", "slices_12", "srpp_weight_0.05", "boundary_weight_0.5", "with_srpp_memory"} <= set(ABLATIONS)


def test_a_setting_for_one_of_the_systems_that_learn_from_patches(request_for):
    settings = ("training.batch_size=3", "mednext_s:model.kernel=5")
    asked = request_for(1, methods=("mednext_s", "unet"), patch_settings=settings)
    found = {method: run.config for method, (run,) in runs_by_method(plan_experiment(asked)).items()}
    assert {method: config.training.batch_size for method, config in found.items()} == {"mednext_s": 3, "unet": 3}
    assert {method: config.model.kernel for method, config in found.items()} == {"mednext_s": 5, "unet": 3}


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.kernel=5", "model.kernel is for mednext, not for unet"),
        ("mednxt_s:model.kernel=5", "no system 'mednxt_s'; did you mean 'mednext_s'?"),
        ("training.batchsize=3", "batchsize"),
    ],
)
def test_a_setting_that_does_not_fit_is_not_a_row_that_cannot_run(request_for, setting, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        plan_experiment(request_for(1, methods=("mednext_s", "unet"), patch_settings=(setting,)))


def test_is_made_once_from_the_training_cases(blobs, tmp_path):
    path = shared_plan(tmp_path, Task("blobs", blobs, None), SplitConfig())
    dataset = read_dataset(blobs)
    assert read_plan_yaml(path) == propose_plan(fingerprint(dataset), split_cases(dataset.names, SplitConfig()).train)
    path.write_text(path.read_text().replace("slab_slices: 3", "slab_slices: 4"))  # a person's change stays
    assert shared_plan(tmp_path, Task("blobs", blobs, None), SplitConfig()) == path
    assert read_plan_yaml(path).slab_slices == 4


def test_another_split_has_another_plan(blobs, tmp_path):
    task = Task("blobs", blobs, None)
    assert shared_plan(tmp_path, task, SplitConfig()) != shared_plan(tmp_path, task, SplitConfig(seed=1))
