"""Every file that a command reads, in every kind of damage: one line that names the file, and exit status 2."""

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from sam2_3dmed.cli import main as cli
from sam2_3dmed.evaluation.cases import evaluate_cases
from sam2_3dmed.run.run_folder import remember_data
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

DIGITS = b"9" * 5000
Damage = Callable[[bytes], bytes | None]
"""From the content to the damaged one; None removes the file."""

ANY: dict[str, Damage] = {
    "missing": lambda content: None,
    "random bytes": lambda content: np.random.default_rng(0).bytes(len(content)),
    "null bytes": lambda content: bytes(len(content)),
}
JSON: dict[str, Damage] = ANY | {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "a number of thousands of digits": lambda content: b'{"labels": ' + DIGITS + b"}",
    "deep nesting": lambda content: b'{"labels": ' + b"[" * 100_000,
    "a number instead": lambda content: b"5",
    "a text instead": lambda content: b'"labels"',
    "a list of numbers instead": lambda content: b"[1, 2]",
    "half a character": lambda content: b'{"labels": "\\ud800"}',
    "not UTF-8": lambda content: '{"labels": "Ödem"}'.encode("latin-1"),
}
YAML: dict[str, Damage] = ANY | {
    "an impossible date": lambda content: content + b"\ndate: 2023-02-31\n",
    "a number of thousands of digits": lambda content: content + b"\nnumber: " + DIGITS + b"\n",
    "deep nesting": lambda content: content + b"\nlist: " + b"[" * 100_000,
    "aliases of themselves": lambda content: content + b"\na: &a [*a, *a]\n",
    "a list instead": lambda content: b"- 1\n- 2\n",
    "a number instead": lambda content: b"5",
    "an unknown key": lambda content: content + b"\nunknown: 5\n",
}
TEXT: dict[str, Damage] = ANY | {"empty": lambda content: b""}
CSV: dict[str, Damage] = TEXT | {
    "a quotation without end": lambda content: content + b'"a,b\n',
    "a cell without end": lambda content: content + b"a" * 200_000 + b"\n",
    "more cells than columns": lambda content: content + b"a," * 40 + b"a\n",
}
WEIGHTS: dict[str, Damage] = TEXT | {
    "cut short": lambda content: content[: len(content) // 2],
    "a header of another length": lambda content: struct.pack("<Q", 2**60) + content[8:],
    "a header that is no JSON": lambda content: content[:8] + b"[" * (len(content) - 8),
    "a number that is not finite": lambda content: content[:-4] + struct.pack("<f", np.nan),
}
ZIP: dict[str, Damage] = ANY | {
    "cut short": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: content[:60] + bytes([content[60] ^ 16]) + content[61:],
}
NIFTI: dict[str, Damage] = TEXT | {"cut short": lambda content: content[: len(content) // 2]}

MASKS = ["evaluate", "masks", "truth", "-o", "out"]
PREDICT = ["predict", "scan.nii.gz", "-o", "out", "-m", "run"]
TRAIN = ["train", "data", "--out", "new", "--weights", "none"]
COMPARE = ["compare", "run", "other"]
KINDS: dict[str, tuple[str, list[str], dict[str, Damage]]] = {
    "data set": ("data/dataset.json", ["fingerprint", "data"], JSON),
    "class names": ("names.json", [*MASKS, "--labels", "names.json"], JSON),
    "codes": ("codes.json", [*PREDICT, "--codes", "codes.json"], JSON),
    "codes of a run": ("run/codes.json", PREDICT, JSON),
    "config of a run": ("run/config.yaml", PREDICT, YAML),
    "weights of a run": ("run/model.safetensors", PREDICT, WEIGHTS),
    "plan": ("plan.yaml", [*TRAIN, "--plan", "plan.yaml"], YAML),
    "recipe": ("recipe.yaml", [*TRAIN, "--recipe", "recipe.yaml"], YAML),
    "weights to start from": ("weights.pt", [*TRAIN[:-1], "weights.pt"], WEIGHTS),
    "split": ("begun/split.json", ["train", "data", "--out", "begun", "--resume"], JSON),
    "list": ("list.txt", ["predict", "--list", "list.txt", *PREDICT[2:]], TEXT),
    "table of inputs": ("list.csv", ["predict", "--list", "list.csv", *PREDICT[2:]], CSV),
    "table of pairs": ("pairs.csv", ["evaluate", "pairs.csv", "-o", "out"], CSV),
    "mask": ("masks/blob_00.nii.gz", MASKS, NIFTI),
    "cases to compare": ("run/evaluation/cases.csv", COMPARE, CSV),
    "summary to compare": ("run/evaluation/summary.json", COMPARE, JSON),
    "curves of a report": ("run/curves.csv", ["report", "run"], CSV),
    "cases of a report": ("run/evaluation/cases.json", ["report", "run"], JSON),
    "summary of a report": ("run/evaluation/summary.json", ["report", "run"], JSON),
    "data of a report": ("run/data.json", ["report", "run"], JSON),
    "zip": ("study.zip", ["prepare", "study.zip", "-o", "out"], ZIP),
}
MAY_BE_MISSING = {"run/codes.json", "run/curves.csv", "run/evaluation/cases.json", "run/data.json", "data/dataset.json"}
MAY_BE_MISSING |= {"masks/blob_00.nii.gz"}  # another message names the folder
WALK = [
    pytest.param(kind, name, id=f"{kind}: {name}")
    for kind, (file, _, damages) in KINDS.items()
    for name in damages
    if not (name == "missing" and (file in MAY_BE_MISSING or kind == "summary of a report"))
]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["sam2-3dmed", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(blobs: Path, write_random_run, write_series, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file, whole."""
    root = tmp_path_factory.mktemp("whole")
    data, folder = root / "data", root / "run"
    (root / "masks").mkdir()
    (root / "truth").mkdir()
    shutil.copytree(blobs, data)
    for file in sorted((data / "labelsTr").iterdir()):
        label = read_label(file)
        label.with_array(np.minimum(label.array, 2)).write(file)
    names = {"0": "background", "1": "organ 1", "2": "organ 2"}
    content = json.loads((data / "dataset.json").read_text()) | {"labels": names}
    (data / "dataset.json").write_text(json.dumps(content))
    (root / "names.json").write_text(json.dumps({"labels": names}))
    codes = json.dumps({"codes": {"organ 1": ["78961009", "SCT", "Spleen"]}})
    write_random_run(folder)
    for name in ("blob_00.nii.gz", "blob_01.nii.gz"):
        for part in ("masks", "truth"):
            shutil.copy(data / "labelsTr" / name, root / part / name)
    for place in (root / "codes.json", folder / "codes.json"):
        place.write_text(codes)
    shutil.copy(data / "imagesTr" / "blob_00.nii.gz", root / "scan.nii.gz")
    pairs = [(f"case {n}", root / "masks" / f"blob_0{n}.nii.gz", root / "truth" / f"blob_0{n}.nii.gz") for n in (0, 1)]
    evaluate_cases(pairs, {1: "organ 1", 2: "organ 2"}, workers=0).write(folder / "evaluation")
    (folder / "curves.csv").write_text("epoch,step,train/total\n0,5,1.5\n1,10,0.7\n")
    remember_data(folder, data)
    shutil.copytree(folder / "evaluation", root / "other" / "evaluation")
    shutil.copytree(folder, root / "begun")
    (root / "begun" / "model.safetensors").unlink()
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (data / "imagesTr").iterdir())
    split = {"train": cases[:8], "validation": cases[8:10], "test": cases[10:]}
    (root / "begun" / "split.json").write_text(json.dumps(split))
    channel = "channels: [{name: CT, normalisation: fixed, low: 0, high: 1}]\n"
    (root / "plan.yaml").write_text(f"dataset: x\n{channel}labels: {{1: organ 1, 2: organ 2}}\n")
    (root / "recipe.yaml").write_text("training: {epochs: 1}\n")
    (root / "weights.pt").write_bytes(b"PK\x03\x04" + bytes(500))
    (root / "list.txt").write_text("scan.nii.gz\n")
    (root / "list.csv").write_text("input\nscan.nii.gz\n")
    (root / "pairs.csv").write_text("prediction,label\nmasks/blob_00.nii.gz,truth/blob_00.nii.gz\n")
    write_series(root / "study", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    with ZipFile(root / "study.zip", "w") as archive:
        for file in sorted((root / "study").iterdir()):
            archive.write(file, f"study/{file.name}")
    return root


@pytest.fixture
def place(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that commands run in; what they make is removed."""
    monkeypatch.chdir(whole)
    yield whole
    for name in ("out", "new"):
        shutil.rmtree(whole / name, ignore_errors=True)


@pytest.mark.parametrize(("kind", "damage"), WALK)
def test_one_line_and_status_2(kind: str, damage: str, place: Path, capsys, monkeypatch) -> None:
    name, arguments, damages = KINDS[kind]
    whole = (place / name).read_bytes()
    content = damages[damage](whole)
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    before = states(place)
    try:
        status, errors = run(arguments, capsys, monkeypatch)
        assert status == 2, errors
        assert "Traceback" not in errors
        *_, line = errors.splitlines()
        assert line.startswith("Error: ")
        assert errors.count("Error: ") == 1
        assert Path(name).name in line or Path(name).parent.name in line
        assert len(line) < 500
        assert before.items() <= states(place).items()  # nothing is lost
    finally:
        (place / name).write_bytes(whole)


@pytest.mark.parametrize("kind", [kind for kind, (_, arguments, _) in KINDS.items() if arguments[0] != "train"])
def test_a_byte_order_mark_changes_nothing(kind: str, place: Path, capsys, monkeypatch) -> None:
    name, arguments, damages = KINDS[kind]
    if damages not in (JSON, YAML, TEXT, CSV):
        pytest.skip("no text")
    whole = (place / name).read_bytes()
    (place / name).write_bytes(b"\xef\xbb\xbf" + whole)
    try:
        assert run(arguments, capsys, monkeypatch)[0] == 0
    finally:
        (place / name).write_bytes(whole)


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


LONG = "a" * 300
PATHS = {
    "data": ["fingerprint", LONG],
    "data of training": ["train", LONG],
    "run folder": ["train", "data", "--out", LONG, "--weights", "none"],
    "run folder below a file": ["train", "data", "--out", "scan.nii.gz/run", "--weights", "none"],
    "run folder of another name": ["find-rate", "data", "--out", f"{LONG}/run", "--weights", "none"],
    "recipe": ["train", "data", "--recipe", f"{LONG}.yaml"],
    "weights": ["train", "data", "--weights", LONG],
    "model": ["predict", "scan.nii.gz", "-o", "out", "-m", LONG],
    "scan": ["predict", LONG, "-o", "out", "-m", "run"],
    "masks": ["predict", "scan.nii.gz", "-o", LONG, "-m", "run"],
    "masks below a file": ["predict", "scan.nii.gz", "-o", "list.txt/out", "-m", "run"],
    "boxes": [*PREDICT, "--boxes-from", LONG],
    "list of scans": ["predict", "--list", LONG, *PREDICT[2:]],
    "scores": ["evaluate", "masks", "truth", "-o", LONG],
    "scores below a file": ["evaluate", "masks", "truth", "-o", "list.txt/out"],
    "masks to score": ["evaluate", LONG, "truth", "-o", "out"],
    "class names": [*MASKS, "--labels", LONG],
    "runs to compare": ["compare", LONG, "run"],
    "tables": [*COMPARE, "-o", LONG],
    "run to report": ["report", LONG],
    "page": ["report", "run", "-o", f"{LONG}.html"],
    "studies": ["prepare", LONG, "-o", "out"],
    "plan to write": ["fingerprint", "data", "-o", f"{LONG}.yaml"],
    "export": ["export", "-m", LONG, "-o", "out"],
    "fold": ["train", "data", "--fold", "9" * 5000 + "/5"],
    "superscript fold": ["train", "data", "--fold", "²/5"],
}


@pytest.mark.parametrize("arguments", PATHS.values(), ids=PATHS)
def test_paths_of_300_letters_and_folders_that_cannot_be_made(arguments: list[str], place: Path, capsys, monkeypatch):
    status, errors = run(arguments, capsys, monkeypatch)
    assert status == 2, errors
    assert errors.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in errors


def test_a_folder_instead_of_each_file(place: Path, capsys, monkeypatch) -> None:
    for kind, (name, arguments, _) in KINDS.items():
        (place / name).rename(place / "aside")
        (place / name).mkdir()
        status, errors = run(arguments, capsys, monkeypatch)
        may_be_missing = name in MAY_BE_MISSING or kind == "summary of a report"
        assert status in ((0, 2) if may_be_missing else (2,)), kind
        assert "Traceback" not in errors
        (place / name).rmdir()
        (place / "aside").rename(place / name)
        shutil.rmtree(place / "out", ignore_errors=True)


def test_a_scan_that_is_compressed_and_damaged_costs_only_itself(place: Path, capsys, monkeypatch) -> None:
    content = (place / "scan.nii.gz").read_bytes()
    (place / "half.nii.gz").write_bytes(content[: len(content) // 2])
    status, errors = run(["predict", "half.nii.gz", *PREDICT[1:]], capsys, monkeypatch)
    assert status == 1
    assert "1 failed:\n  half: half.nii.gz: the file is truncated" in errors
    assert (place / "out" / "scan.nii.gz").is_file()
    (place / "half.nii.gz").unlink()


def test_a_whole_one_for_comparison(place: Path, capsys, monkeypatch) -> None:
    assert Volume.read(place / "scan.nii.gz").shape == (24, 28, 7)
    assert run(PREDICT, capsys, monkeypatch)[0] == 0
    assert run(MASKS, capsys, monkeypatch)[0] == 0
    assert run(COMPARE, capsys, monkeypatch)[0] == 0
    assert run(["report", "run"], capsys, monkeypatch)[0] == 0
