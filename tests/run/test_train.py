"""From a data set to a run folder: what it holds, that the test set stays closed, and what cannot be started."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from sam2_3dmed.baselines.train import PatchRun
from sam2_3dmed.cli import main as cli
from sam2_3dmed.config import RunConfig, SplitConfig
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split, split_cases
from sam2_3dmed.dicom.codes import UNKNOWN, Code
from sam2_3dmed.dicom.segmentation import segment_codes
from sam2_3dmed.errors import DataError
from sam2_3dmed.run.run_folder import SPLIT_FILE, read_record, remembered_codes, remembered_data
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.run.train import TrainRequest, choose_split_and_plan, test_run, train
from sam2_3dmed.training.loop import FitResult
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume, same_grid

test_run.__test__ = False  # a function of the package, not a test


@pytest.fixture(scope="module")
def data(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(blobs, tmp_path_factory.mktemp("train") / "blobs"))


@pytest.fixture(scope="module")
def run(data: Path, quick: Callable[..., RunConfig]) -> Path:
    """A finished run, trained while the test cases' files could not be read."""
    names = [f"blob_{number:02d}" for number in range(12)]

    hidden = split_cases(names, SplitConfig()).test
    originals = {file: file.read_bytes() for name in hidden for file in data.glob(f"*Tr/{name}.nii.gz")}
    assert len(originals) == 2 * len(hidden)
    for file in originals:
        file.write_bytes(b"closed")
    folder = train(TrainRequest(data, data.parent / "run", recipe=quick(), weights="none"))
    for file, content in originals.items():
        file.write_bytes(content)
    return folder


def test_the_run_folder_holds_what_it_should(run: Path, data: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "model.safetensors",
        "config.yaml",
        "split.json",
        "curves.csv",
        "data.json",
        "log.txt",
        "tensorboard",
        "pictures",
        "checkpoints",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "step-00000001.ckpt"}
    assert "validation Dice" in (run / "log.txt").read_text()
    record = read_record(run)
    assert record.plan.labels == {1: "bright", 3: "dark"}
    assert record.plan.channels[0].normalisation == "fixed"
    assert remembered_data(run) == data.resolve()


def test_the_split_is_the_one_that_was_asked_for(run: Path) -> None:
    split = Split.read(run / SPLIT_FILE)
    assert (len(split.train), len(split.validation), len(split.test)) == (9, 1, 2)


def test_the_test_set_is_predicted_and_scored(run: Path, data: Path) -> None:
    split = Split.read(run / SPLIT_FILE)
    evaluation = test_run(run, data)
    assert tuple(case.name for case in evaluation.cases) == split.test
    for name in split.test:
        mask = read_label(run / "predictions" / f"{name}.nii.gz", {1, 3})
        assert same_grid(mask, Volume.read(data / "imagesTr" / f"{name}.nii.gz"))
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert [row["class"] for row in summary["results"]] == ["bright", "dark", "mean", "foreground"]
    assert {"nsd_2mm", "nsd_1mm"} < set(summary["metrics"])


def test_a_run_is_not_overwritten_and_a_finished_one_not_resumed(
    run: Path, data: Path, quick: Callable[..., RunConfig]
) -> None:
    request = TrainRequest(data, run, recipe=quick(), weights="none")
    with pytest.raises(DataError, match="there is a run here already; go on with it by --resume"):
        train(request)
    before = (run / "model.safetensors").stat().st_mtime_ns
    assert train(TrainRequest(data, run, resume=True)) == run
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="no run to resume here"):
        train(TrainRequest(data, run.parent / "nothing", resume=True))


def test_an_interrupted_run_resumes_with_its_own_recipe(run: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "model.safetensors").unlink()
    record = read_record(folder)
    longer = record.recipe.training.model_copy(update={"epochs": 2})
    record.model_copy(update={"recipe": record.recipe.model_copy(update={"training": longer})}).write(folder)
    train(TrainRequest(data, folder, resume=True))
    assert len((folder / "curves.csv").read_text().splitlines()) == 3
    assert (folder / "model.safetensors").is_file()


def test_a_plan_of_ones_own_and_a_fold(data: Path, tmp_path: Path, quick: Callable[..., RunConfig]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "dataset: Mine\nchannels: [{name: CT, normalisation: fixed, low: -150, high: 150}]\n"
        "labels: {1: bright, 3: dark}\nslicing_axis: coronal\nslab_slices: 2\n"
    )
    request = TrainRequest(
        data, tmp_path / "run", recipe=quick("slab_slices=null"), weights="none", plan=plan, fold=(2, 3)
    )
    record = read_record(train(request))
    assert (record.plan.slicing_axis, record.plan.slab_slices) == ("coronal", 2)
    split = Split.read(tmp_path / "run" / SPLIT_FILE)
    assert len(split.test) == 4
    assert set(split.test).isdisjoint({*split.train, *split.validation})


def with_codes(blobs: Path, folder: Path, codes: object) -> Path:
    """The blobs, with these codes in dataset.json."""
    file = Path(shutil.copytree(blobs, folder)) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"codes": codes}))
    return folder


def test_codes_of_the_data_set_reach_a_dicom_seg(
    blobs: Path, tmp_path: Path, write_series, stored_voxels, quick: Callable[..., RunConfig]
) -> None:
    data = with_codes(blobs, tmp_path / "blobs", {"bright": ["T-C3000", "SRT", "Spleen"]})
    run = train(TrainRequest(data, tmp_path / "run", recipe=quick(), weights="none"))
    assert run is not None
    assert remembered_codes(run) == {"bright": Code("T-C3000", "SRT", "Spleen")}
    write_series(tmp_path / "study", stored_voxels((24, 28, 4)))
    arguments = ["predict", tmp_path / "study", "-m", run, "-o", tmp_path / "masks", "--format", "dicom-seg"]
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    found = segment_codes(dcmread(tmp_path / "masks" / "study.seg.dcm"))
    assert found == {"bright": Code("T-C3000", "SRT", "Spleen"), "dark": UNKNOWN}


def test_broken_codes_stop_training_before_it_begins(
    blobs: Path, tmp_path: Path, quick: Callable[..., RunConfig]
) -> None:
    data = with_codes(blobs, tmp_path / "blobs", {"bright": "78961009"})
    with pytest.raises(DataError, match=r'blobs/dataset\.json: "codes" must be like'):
        train(TrainRequest(data, tmp_path / "run", recipe=quick(), weights="none"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"log.txt"}


def test_a_broken_training_case_is_named(blobs: Path, tmp_path: Path, quick: Callable[..., RunConfig]) -> None:
    data = Path(shutil.copytree(blobs, tmp_path / "blobs"))
    for file in (data / "labelsTr").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"blob_0\d\.nii\.gz"):
        train(TrainRequest(data, tmp_path / "run", recipe=quick(), weights="none"))


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, quick: Callable[..., RunConfig]
) -> None:
    """While a checkpoint is written, long after everything was checked."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("sam2_3dmed.training.checkpoints.write_checkpoint", full)
    with pytest.raises(DataError, match=f"cannot be written: {os.strerror(reason)}; what is there stays"):
        train(TrainRequest(data, tmp_path / "run", recipe=quick(), weights="none"))


def test_a_run_folder_that_cannot_be_made(data: Path, tmp_path: Path, quick: Callable[..., RunConfig]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/run: cannot be written"):
        train(TrainRequest(data, tmp_path / "file" / "run", recipe=quick(), weights="none"))


@pytest.mark.slow
def test_real_ct_runs_through(shared_data: Path, tmp_path: Path, quick: Callable[..., RunConfig]) -> None:
    """Six cases of a real CT in LPS: the loss falls, and the masks lie on the input grid."""
    for ours, theirs in (("images", "imagesTr"), ("labels", "labelsTr")):
        (tmp_path / "data" / ours).mkdir(parents=True)
        for file in sorted((shared_data / "Task91_SarcomaCT" / theirs).glob("[!.]*.nii.gz"))[:6]:
            (tmp_path / "data" / ours / file.name).symlink_to(file)
    data = tmp_path / "data"
    settings = ["slab_slices=null", "training.epochs=4", "training.samples_per_epoch=16", "training.batch_size=4"]
    settings += ["training.validate_every=4", "inference.direction=forward", "inference.overlap=0"]
    folder = train(TrainRequest(data, tmp_path / "run", recipe=quick(*settings), weights="none"))
    rows = (folder / "curves.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/total")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert losses[-1] < 0.95 * losses[0]
    for case in test_run(folder, data).cases:
        image = Volume.read(data / "images" / f"{case.name}.nii.gz")
        assert same_grid(read_label(case.prediction), image)


def test_the_test_cases_stay_closed_for_every_system(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam2_3dmed.run import train as module

    opened: list[str] = []

    def note(dataset, **more):
        opened.extend(dataset.names)
        return fingerprint(dataset, **more)

    fingerprint = module.fingerprint
    monkeypatch.setattr(module, "fingerprint", note)
    monkeypatch.setattr(PatchRun, "fit", lambda self, *, resume: FitResult(1.0, 1, 1))
    recipe = find_system("unet").recipe(settings=["model.size=small"])
    run = train(TrainRequest(blobs, tmp_path / "run", recipe=recipe, system="unet"))
    split = Split.read(run / SPLIT_FILE)
    assert split == split_cases([f"blob_{number:02d}" for number in range(12)], recipe.split)  # as of any system
    assert set(opened) == {*split.train, *split.validation}


@pytest.mark.parametrize("own_plan", [False, True])
def test_validation_cases_have_foreground(tmp_path: Path, caplog: pytest.LogCaptureFixture, own_plan: bool) -> None:
    """Of six cases c0 and c2 are empty, and c0 alone would validate; the test case cannot be read."""
    names = [f"c{number}" for number in range(6)]
    plain = split_cases(names, SplitConfig())
    assert plain.validation == ("c0",)
    image = np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)
    for number, name in enumerate(names):
        label = np.zeros((16, 16, 8), np.uint8)
        label[4:10, 4:10, 2:6] = number not in (0, 2)
        for folder, array in (("images", image), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Volume(array, np.eye(4)).write(tmp_path / folder / f"{name}.nii.gz")
    for file in tmp_path.glob(f"*/{plain.test[0]}.nii.gz"):
        file.write_bytes(b"closed")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "dataset: Mine\nchannels: [{name: CT, normalisation: fixed, low: -1, high: 1}]\nlabels: {1: ball}\n"
    )
    with caplog.at_level("INFO"):
        split, _ = choose_split_and_plan(read_dataset(tmp_path), SplitConfig(), path=plan if own_plan else None)
    assert split.test == plain.test
    assert len(split.validation) == 1
    assert not {"c0", "c2"} & {*split.validation}
    line = "2 of 4 training and 0 of 1 validation cases have no foreground: the split is stratified by it"
    assert line in caplog.messages
