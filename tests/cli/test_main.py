"""The command line end to end on real files, and the one line that each mistake gets, with exit status 2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sam2_3dmed.cli import main as cli
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume, same_grid

QUICK = ["model.size=nano", "model.image_size=64", "slab_slices=3", "training.epochs=1"]
QUICK += ["training.samples_per_epoch=2", "training.batch_size=2", "training.validate_every=1", "training.workers=0"]
COMMANDS = ["demo", "fingerprint", "train", "find-rate", "predict", "evaluate", "compare", "report"]


def run(
    *arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    monkeypatch.setattr(sys, "argv", ["sam2-3dmed", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output, errors = capsys.readouterr()
    return int(stop.value.code or 0), output, errors


def settings(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def trained(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a run on it, both made by the command line in a process of its own."""
    root = tmp_path_factory.mktemp("cli")
    data = Path(shutil.copytree(blobs, root / "blobs"))
    command = [sys.executable, "-m", "sam2_3dmed", "train", data, "--out", root / "run", "--weights", "none", "--test"]
    done = subprocess.run([*map(str, command), *settings(QUICK)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 cases; means over cases" in done.stdout
    return data, root / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"sam2-3dmed {command}" in result.output
    assert "Examples" in result.output


def test_help_needs_no_torch() -> None:
    code = "import sys\nsys.argv=['sam2-3dmed', '--help']\nfrom sam2_3dmed.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'nibabel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


@pytest.mark.parametrize(("variables", "rounds"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_soon_sleep(variables: dict[str, str], rounds: str, tmp_path: Path) -> None:
    """GNU OpenMP itself says how many rounds it waits awake. A user's own number stays."""
    if sys.platform != "linux":
        pytest.skip("torch has GNU OpenMP on Linux")
    command = [sys.executable, "-m", "sam2_3dmed", "predict", "scan.nii.gz", "-o", "masks", "--model", tmp_path]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"GOMP_SPINCOUNT = '{rounds}'" in done.stderr


def test_a_broken_package_costs_only_its_own_command(tmp_path: Path) -> None:
    (tmp_path / "stranger-1.dist-info").mkdir()
    (tmp_path / "stranger-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    entries = "[sam2_3dmed.commands]\nbad = stranger:commands\ngone = stranger_gone:commands\nodd = json:dumps\n"
    (tmp_path / "stranger-1.dist-info" / "entry_points.txt").write_text(entries)
    (tmp_path / "stranger.py").write_text("raise OSError('no disk\\n[/b] today')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
        command = [sys.executable, "-m", "sam2_3dmed", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    overview = call("--help")
    assert overview.returncode == 0
    assert "demo" in overview.stdout
    assert "stranger:commands cannot be imported: OSError: no disk [/b] today" in overview.stdout
    reports = {
        "bad": "stranger:commands cannot be imported: OSError: no disk [/b] today",
        "gone": "stranger_gone:commands cannot be imported: ModuleNotFoundError: No module named 'stranger_gone'",
        "odd": "json:dumps is no typer.Typer",
    }
    for name, reason in reports.items():
        called = call(name, "scan.nii.gz", "--out", "masks")
        assert (called.returncode, called.stderr) == (2, f"Error: {name}: {reason}\n")
    assert "no such folder" in call("fingerprint", str(tmp_path / "missing")).stderr


def test_fingerprint_proposes_a_plan_that_train_takes(blobs: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    plan = tmp_path / "plan.yaml"
    status, output, _ = run("fingerprint", blobs, "--out", plan, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "Plan written" in output
    assert "slicing_axis: axial" in plan.read_text()
    status, output, _ = run("fingerprint", blobs, capsys=capsys, monkeypatch=monkeypatch)
    assert plan.read_text() in output


def test_predict_and_evaluate(trained: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    data, folder = trained
    status, output, _ = run(
        "predict", data / "imagesTr", "-o", tmp_path / "masks", "-m", folder, capsys=capsys, monkeypatch=monkeypatch
    )
    assert status == 0
    assert "12 of 12 masks written" in output
    for file in (data / "imagesTr").iterdir():
        assert same_grid(read_label(tmp_path / "masks" / file.name, {1, 3}), Volume.read(file))
    arguments = [tmp_path / "masks", data / "labelsTr", "-o", tmp_path / "scores", "--labels", data / "dataset.json"]
    status, output, _ = run("evaluate", *arguments, "--tolerance", 3, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "nsd_3mm" in output
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["cases"] == 12


def test_a_failing_case_costs_only_itself(trained: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    data, folder = trained
    (tmp_path / "in").mkdir()
    shutil.copy(data / "imagesTr" / "blob_00.nii.gz", tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no volume")
    status, output, errors = run(
        "predict", tmp_path / "in", "-o", tmp_path / "out", "-m", folder, capsys=capsys, monkeypatch=monkeypatch
    )
    assert status == 1
    assert "1 of 2 masks written" in output
    assert "1 failed:" in errors
    assert errors.count("bad.nii.gz") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.nii.gz", "manifest.jsonl"}


def bad_commands(root: Path) -> dict[str, tuple[list[object], str]]:
    """Arguments and the line they must get; {root} holds the files that `broken` made."""
    train = ["train", root / "blobs", "--out", root / "new", "--weights", "none"]
    return {
        "no data": (["train", root / "missing"], "missing: no such folder"),
        "unknown key": ([*train, "--set", "training.epoch=3"], "no such key 'training.epoch'; did you mean 'epochs'?"),
        "out of range": ([*train, "--set", "training.batch_size=0"], "training.batch_size: Input should be greater"),
        "both at once": (
            [*train, "--set", "training.epoch=3", "--set", "loss.terms.boundary=-1"],
            "loss.terms.boundary",
        ),
        "unknown loss": ([*train, "--set", "loss.terms.dise=1"], "loss.terms: no term 'dise'; did you mean 'dice'?"),
        "no value": ([*train, "--set", "epochs"], "--set epochs: expected section.key=value"),
        "unknown recipe": ([*train, "--recipe", "papper"], "no preset 'papper'; did you mean 'paper'?"),
        "unknown ablation": ([*train, "--recipe", "paper+without_srp"], "did you mean 'without_srpp'?"),
        "resume with options": (["train", root / "blobs", "--resume", "--fold", "1/5"], "it takes no --fold"),
        "ablation that is none": (["train", root / "blobs", "--recipe", "paper+without_pretraining"], "--weights none"),
        "bad fold": ([*train, "--fold", "6/5"], "--fold 6/5: expected i/n"),
        "too many folds": ([*train, "--fold", "1/50"], "12"),
        "no such weights": ([*train[:-1], root / "w.pt"], "w.pt: no such file"),
        "weights of another model": ([*train[:-1], root / "other.pt"], "other.pt"),
        "plan with a wrong key": ([*train, "--plan", root / "plan.yaml"], "no such key 'slicing_axes'; did you mean"),
        "label not named": (["train", root / "odd_label", "--out", root / "n", "--weights", "none"], "blob_0"),
        "label on another grid": (["fingerprint", root / "shifted"], "not on the grid of"),
        "label of another shape": (["fingerprint", root / "cropped"], "not on the grid of"),
        "too few cases": (["train", root / "two", "--out", root / "n", "--weights", "none"], "2"),
        "not a run": (["predict", root / "4d.nii.gz", "-o", root / "o", "-m", root / "blobs"], "not a run folder"),
        "missing input": (["predict", root / "none.nii.gz", "-o", root / "o", "-m", root / "run"], "no such file"),
        "direction": (
            ["predict", root, "-o", root / "o", "-m", root / "run", "--set", "inference.direction=up"],
            "inference.direction: Input should be 'forward'",
        ),
        "unmatched": (
            ["evaluate", root / "run" / "predictions", root / "blobs" / "labelsTr", "-o", root / "o"],
            "match",
        ),
    }


@pytest.fixture(scope="module")
def broken(trained: tuple[Path, Path]) -> Path:
    """The data set in several states of disrepair."""
    import torch

    root = trained[0].parent
    for name in ("odd_label", "shifted", "cropped", "two"):
        shutil.copytree(trained[0], root / name)
    for file in (root / "odd_label" / "labelsTr").iterdir():
        label = read_label(file)
        label.with_array(np.where(label.array == 3, 7, label.array)).write(file)
    file = root / "shifted" / "labelsTr" / "blob_00.nii.gz"
    label = read_label(file)
    moved = label.affine.copy()
    moved[0, 3] += 5
    Volume(label.array, moved).write(file)
    Volume(label.array[:-1], label.affine).write(root / "cropped" / "labelsTr" / "blob_00.nii.gz")
    content = json.loads((root / "two" / "dataset.json").read_text())
    content["training"] = content["training"][:2]
    (root / "two" / "dataset.json").write_text(json.dumps(content))
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, root / "other.pt")
    (root / "plan.yaml").write_text("dataset: x\nslicing_axes: axial\n")
    return root


@pytest.mark.parametrize("mistake", list(bad_commands(Path())))
def test_mistakes_get_a_line_and_status_2(mistake: str, broken: Path, capsys, monkeypatch) -> None:
    arguments, line = bad_commands(broken)[mistake]
    status, _, errors = run(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert "Traceback" not in errors
    assert "Error: " in errors
    assert line in errors


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (np.zeros((4, 4, 4, 5), np.int16), "channels"),
        (np.full((4, 4, 4), np.nan, np.float32), "NaN"),
        (np.zeros((4, 4, 4, 2), np.int16), "the volume has 2 channels, the plan has 1"),
    ],
    ids=["4D", "NaN", "two channels"],
)
def test_volumes_that_cannot_be_predicted(array, line, trained, tmp_path: Path, capsys, monkeypatch) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "odd.nii.gz")
    status, _, errors = run(
        "predict",
        tmp_path / "odd.nii.gz",
        "-o",
        tmp_path / "o",
        "-m",
        trained[1],
        capsys=capsys,
        monkeypatch=monkeypatch,
    )
    assert status == 1
    assert "odd.nii.gz" in errors
    assert line in errors


def test_names_of_files_that_are_not_utf8(tmp_path, monkeypatch):
    """Scored, written and shown with an escape in the place of the byte."""
    name = os.fsdecode(b"caf\xe9.nii.gz")
    for folder in ("masks", "labels"):
        (tmp_path / folder).mkdir()
        Volume(np.ones((2, 3, 4), np.uint8), np.eye(4)).write(tmp_path / folder / name)
    command = [
        sys.executable,
        "-m",
        "sam2_3dmed",
        "evaluate",
        tmp_path / "masks",
        tmp_path / "labels",
        "-o",
        tmp_path / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "cases.json").read_text())[0]["case"] == os.fsdecode(b"caf\xe9")
    assert "caf\\udce9" in (tmp_path / "out" / "cases.csv").read_text()


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sam2_3dmed.data.dataset.read_dataset", interrupted)
    monkeypatch.setattr(sys, "argv", ["sam2-3dmed", "fingerprint", "data"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("Interrupted; train --resume, predict")
