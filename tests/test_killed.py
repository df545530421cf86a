"""Each command is killed at random moments and called again: the result is that of a call that nobody disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.dicom.structures import write_structures
from sam2_3dmed.volume.volume import Volume

pytestmark = pytest.mark.long

RUNS = 2
"""For each command and signal."""
STUDIES = 12
TRAIN = [
    *(f"--set={s}" for s in ("model.size=nano", "model.image_size=64", "slab_slices=3", "training.epochs=2")),
    *(f"--set={s}" for s in ("training.samples_per_epoch=4", "training.batch_size=2", "training.validate_every=1")),
    *(f"--set={s}" for s in ("training.checkpoint_minutes=1e-9", "training.workers=0", "inference.shifts=false")),
]


@dataclass(frozen=True)
class Command:
    """A command, from the folder it writes and the folder of what it needs."""

    arguments: Callable[[Path, Path], Sequence[object]]
    results: tuple[str, ...]
    """Patterns of the files that must be equal byte by byte."""
    again: Callable[[Path, Path], Sequence[object]] | None = None
    """The second call, if it is not the first one again. Where nothing is there to go on from, that follows."""
    finished: str | None = None
    """What the second call says, with status 2, when the first one had ended."""


def _train(out: Path, given: Path) -> list[object]:
    return ["train", given / "data", "--out", out / "run", "--weights", "none", *TRAIN]


def _train_on_features(out: Path, given: Path) -> list[object]:
    changes = ["--set=training.encoder=frozen", "--set=feature_cache.views=2"]
    return ["train", given / "data", "--out", out / "run", "--weights", given / "run", *TRAIN, *changes]


def _resume(out: Path, given: Path) -> list[object]:
    return ["train", given / "data", "--out", out / "run", "--resume"]


TRAINED = ("run/model.safetensors", "run/curves.csv", "run/split.json")
COMMANDS = {
    "train": Command(_train, TRAINED, _resume),
    "train on cached features": Command(_train_on_features, TRAINED, _resume),
    "prepare": Command(
        lambda out, given: ["prepare", given / "studies", "-o", out / "set"],
        ("set/imagesTr/*", "set/labelsTr/*", "set/*"),
        finished="set: exists and is not an empty folder",
    ),
    "predict": Command(
        lambda out, given: ["predict", given / "data/imagesTr", "-o", out, "--model", given / "run", "--workers", 2],
        ("*.nii.gz",),
    ),
    "evaluate": Command(
        lambda out, given: ["evaluate", given / "data/labelsTr", given / "data/labelsTr", "-o", out, "--workers", 2],
        ("*.csv", "*.json"),
    ),
    "report": Command(lambda out, given: ["report", given / "run", "-o", out / "page.html"], ("page.html",)),
    "export": Command(lambda out, given: ["export", "--model", given / "run", "-o", out], ("*.onnx", "*.yaml")),
    "fingerprint": Command(lambda out, given: ["fingerprint", given / "data", "-o", out / "plan.yaml"], ("plan.yaml",)),
}


def start(arguments: Sequence[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sam2_3dmed", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(arguments: Sequence[object]) -> tuple[int, str]:
    process = start(arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def contents(folder: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for pattern in patterns
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def given(blobs: Path, write_series, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a run on it with scores of its test cases, and annotated DICOM studies."""
    folder = tmp_path_factory.mktemp("given")
    shutil.copytree(blobs, folder / "data")
    for number in range(STUDIES):
        study = folder / "studies" / f"patient{number:02d}"
        write_series(study / "ct", np.full((64, 48, 12), number, np.int16), SeriesInstanceUID=f"1.2.3.{number + 1}0")
        series = choose_series(study / "ct")
        array = np.zeros(series.shape, np.uint8)
        array[5 : 10 + number, 5:20, 3:6] = 1
        write_structures(Volume(array, series.affine), series, study / "rs.dcm", {1: "organ"})
    status, output = finish([*_train(folder, folder), "--test"])
    assert status == 0, output
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_call_completes_the_first(name: str, given: Path, tmp_path: Path) -> None:
    command, generator = COMMANDS[name], random.Random(name)
    straight = tmp_path / "straight"
    straight.mkdir()
    started = time.monotonic()
    status, output = finish(command.arguments(straight, given))
    seconds = time.monotonic() - started
    assert status == 0, output
    expected = contents(straight, command.results)
    assert len(expected) >= len(command.results), sorted(expected)
    for number in range(RUNS):
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            out = tmp_path / f"{kind.name}{number}"
            out.mkdir()
            process, moment = start(command.arguments(out, given)), generator.uniform(0.1, 1) * seconds
            try:
                first, _ = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                # A terminal interrupts all processes of a command, `kill` only the one that is named.
                (os.killpg if kind == signal.SIGINT else os.kill)(process.pid, kind)
                first, _ = process.communicate(timeout=300)  # worker processes that still import end after that
            assert "Traceback" not in first, f"{kind.name} after {moment:.2f} s: {first}"
            assert process.returncode != 130 or "Interrupted; " in first, f"{moment:.2f} s: {first}"
            status, output = finish((command.again or command.arguments)(out, given))
            if status and command.again:
                status, output = finish(command.arguments(out, given))
            if command.finished and command.finished in output:
                status = 0
            what = f"{kind.name} after {moment:.2f} of {seconds:.2f} s"
            assert status == 0, f"{what}: {output}"
            found = contents(out, command.results)
            assert found.keys() == expected.keys(), what
            assert [name for name, content in found.items() if content != expected[name]] == [], what
            leftover = [file for file in out.rglob("*") if ".partial" in file.name]
            assert kind == signal.SIGKILL or leftover == [], what
