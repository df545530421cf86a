"""Runs that are killed, or run into a full disk, for real and by the real command line: nothing whole is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import paper_scratch, with_settings
from sam2_3dmed.run.run_folder import read_record, read_weights
from sam2_3dmed.run.train import TrainRequest, train
from sam2_3dmed.training.checkpoints import is_whole, saved_states, step_of

STEPS = 3
"""An epoch."""
SETTINGS = [
    "model.size=nano",
    "model.slice_mixing=true",
    "model.image_size=64",
    "slab_slices=2",
    "training.epochs=3",
    "training.single_slice_fraction=0.34",  # one epoch of single slices
    f"training.samples_per_epoch={STEPS}",
    "training.batch_size=1",
    "training.validate_every=2",
    "training.ema_decay=0.9",
    "training.workers=0",
    "inference.direction=forward",
    "inference.overlap=0",
]
EVERY_STEP = "training.checkpoint_minutes=1e-9"
AT_STEP = """
from sam2_3dmed.training.slab_training import SlabTraining
before_it = SlabTraining.losses
def losses(self, *arguments):
    if self.progress.step == {step}:
        {action}
    return before_it(self, *arguments)
SlabTraining.losses = losses
"""
STAYS = "what is there stays, and --resume goes on from it"
CommandLine = Callable[..., tuple[int, str]]


def at_step(step: int, action: str) -> str:
    """Code for a process that does something of its own within its first step after so many."""
    return AT_STEP.format(step=step, action=action)


def killed(step: int, name: str) -> str:
    return at_step(step, f"import os, signal; os.kill(os.getpid(), signal.{name})")


def anew(data: Path, folder: Path, *settings: str) -> list[object]:
    """The arguments of a new run."""
    start = ["train", data, "--out", folder, "--recipe", "paper_scratch", "--weights", "none"]
    return [*start, *(f"--set={s}" for s in [*SETTINGS, *settings])]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For run folders: their prepared cases are shared."""
    return tmp_path_factory.mktemp("runs")


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in saved_states(folder / "checkpoints")]


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text().splitlines()[-1][len("2026-01-01 00:00:00 ") :]


@pytest.mark.parametrize(
    "settings",
    [(), ("training.encoder=frozen", "feature_cache.views=2", "feature_cache.refresh=2")],
    ids=["fresh slabs", "views"],
)
def test_killed_twice_it_equals_an_uninterrupted_run(
    settings: tuple[str, ...], blobs: Path, root: Path, command_line: CommandLine
) -> None:
    folder, straight = (root / f"{name}{len(settings)}" for name in ("killed", "straight"))
    config = with_settings(paper_scratch(), [*SETTINGS, *settings])
    train(TrainRequest(blobs, straight, recipe=config, weights="none"))
    status, output = command_line(
        *anew(blobs, folder, EVERY_STEP, *settings), before=killed(1, "SIGTERM")
    )  # within the first epoch
    assert (status, output.splitlines()[-1]) == (75, "Terminated; train --resume goes on from the last checkpoint.")
    assert steps(folder) == [2, 1]  # the step was finished, and no other begun
    status, _ = command_line("train", blobs, "--out", folder, "--resume", before=killed(STEPS + 2, "SIGKILL"))
    assert status == -9
    assert steps(folder) == [STEPS + 2, STEPS + 1]
    # The rest with slabs drawn in another process, which must begin in the right epoch and at the right place.
    record = read_record(folder)
    training = record.recipe.training.model_copy(update={"workers": 1})
    record.model_copy(update={"recipe": record.recipe.model_copy(update={"training": training})}).write(folder)
    train(TrainRequest(blobs, folder, resume=True))

    assert (folder / "curves.csv").read_text() == (straight / "curves.csv").read_text()
    assert last_line(folder) == last_line(straight)
    expected, got = (read_weights(run / "model.safetensors") for run in (straight, folder))
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_sigterm_while_validating(blobs: Path, root: Path, command_line: CommandLine) -> None:
    """It may take longer than a scheduler waits, so it is broken off."""
    folder = root / "validating"
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
    before = (
        "from sam2_3dmed.inference.predictor import Predictor\n"
        f"def predict_slices(*arguments, **more):\n    {kill.replace(chr(10), '; ')}raise AssertionError\n"
        "Predictor.predict_slices = predict_slices\n"
    )
    status, output = command_line(*anew(blobs, folder, EVERY_STEP, "training.epochs=1"), before=before)
    assert (status, output.splitlines()[-1]) == (75, "Terminated; train --resume goes on from the last checkpoint.")
    assert steps(folder) == [2, 1]  # step 3 ends the epoch, of which validation is a part


@pytest.mark.long
def test_a_signal_to_all_processes_of_a_job(blobs: Path, root: Path) -> None:
    """As SLURM sends it: the processes that draw slabs get it, too, and die of it."""
    folder = root / "job"
    command = [sys.executable, "-m", "sam2_3dmed", *anew(blobs, folder, EVERY_STEP, "training.workers=1")]
    with subprocess.Popen(map(str, command), stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not saved_states(folder / "checkpoints"):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        output = process.stderr.read()
    assert process.returncode == 75, output
    assert errors(output) == []
    before = steps(folder)[0]
    train(TrainRequest(blobs, folder, resume=True))
    assert steps(folder)[0] == 3 * STEPS > before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which can be full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(blobs: Path, root: Path, full_disk: Path, command_line: CommandLine) -> None:
    folder = full_disk / "run"
    fill = (
        "import contextlib, pathlib\n"
        "        with contextlib.suppress(OSError), open({path!r}, 'wb', buffering=0) as file:\n"
        "            while True: file.write(bytes(4096))"
    ).format(path=str(full_disk / "filler"))
    status, output = command_line(*anew(blobs, folder, EVERY_STEP), before=at_step(1, fill))
    assert status == 2
    assert errors(output) == [f"Error: {folder}: cannot be written: No space left on device; {STAYS}"]
    assert steps(folder) == [1]
    assert all(is_whole(path) for path in saved_states(folder / "checkpoints"))
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_file_that_may_not_grow(blobs: Path, root: Path, command_line: CommandLine) -> None:
    """As with a quota: the system refuses a file above a size."""
    folder = root / "limited"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    status, output = command_line(*anew(blobs, folder, EVERY_STEP), before=at_step(1, limit))
    assert status == 2
    assert errors(output) == [f"Error: {folder}: cannot be written: File too large; {STAYS}"]
    assert steps(folder) == [1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001.ckpt"]


def test_numbers_that_are_not_finite(blobs: Path, root: Path, command_line: CommandLine) -> None:
    folder = root / "diverged"
    status, output = command_line(*anew(blobs, folder, EVERY_STEP, "training.learning_rate=1e30"))
    assert status == 2
    (line,) = errors(output)
    assert line.startswith("Error: epoch 1, step 2: not finite: ")
    assert "total loss nan" in line
    assert line.endswith("; the checkpoints are from before it; a lower training.learning_rate may help")
    assert steps(folder) == [1]
    weights = torch.load(saved_states(folder / "checkpoints")[0], weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def errors(output: str) -> list[str]:
    """The lines but for those of the log and the progress bar."""
    return [line for line in output.splitlines() if line.startswith("Error") or "Traceback" in line]
