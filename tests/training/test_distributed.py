"""Who takes part in a run; and two real processes, which train to the weights of one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import paper_scratch, with_settings
from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.run_folder import MODEL_FILE, read_weights
from sam2_3dmed.run.train import TrainRequest
from sam2_3dmed.run.train import train as train_run
from sam2_3dmed.training import distributed as parallel
from sam2_3dmed.training.distributed import DistributedContext, gather

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
SLURM = {
    **{"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_JOB_ID": "4711"},
    **{"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NODELIST": "a[1-2]"},
}


@pytest.fixture(autouse=True)
def _nobody_has_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Notes who would be connected to, instead of waiting for three processes that are not there."""
    asked: list[object] = []
    monkeypatch.setattr(parallel, "_connect", asked.append)
    return asked


def test_alone() -> None:
    distributed = DistributedContext.find()
    assert (distributed.size, distributed.first, distributed.waiting) == (1, True, False)
    assert distributed.start_barrier()
    assert not distributed.start_barrier(False)
    assert gather("mine") == ["mine"]


def test_the_first_process_starts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DistributedContext.find(devices=3) == DistributedContext(3, rank=0)
    monkeypatch.setenv("LOCAL_RANK", "2")  # as Fabric sets it for those it starts
    assert DistributedContext.find(devices=3) == DistributedContext(3, rank=2)
    assert DistributedContext.find() == DistributedContext()  # not ours


@pytest.mark.parametrize(("variables", "rank"), [(TORCHRUN, 3), (SLURM, 2)], ids=["torchrun", "SLURM"])
def test_all_were_started_at_once(
    variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch, connected: list[object]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert DistributedContext.find() == DistributedContext.find(2, 2) == DistributedContext(2, 2, rank, waiting=True)
    assert len(connected) == 2
    with pytest.raises(ConfigError, match=r"has started 4 processes on 2 machines, which is not --devices 4 --nodes 2"):
        DistributedContext.find(devices=4)


def test_one_task_of_a_scheduler_is_alone(monkeypatch: pytest.MonkeyPatch, connected: list[object]) -> None:
    for name, value in {**SLURM, "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert DistributedContext.find() == DistributedContext()
    assert not connected


def test_slurm_told_too_little(monkeypatch: pytest.MonkeyPatch, connected: list[object]) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node=4"):
        DistributedContext.find()


def test_machines_need_someone_who_starts_them() -> None:
    with pytest.raises(ConfigError, match="--nodes 2: start it on every machine, by torchrun or srun"):
        DistributedContext.find(devices=2, nodes=2)


def test_bf16_is_chosen_by_hand_or_by_the_processor() -> None:
    assert use_bf16("bf16", "cpu")
    assert not use_bf16("32", "cpu")
    fast = torch.cpu._is_amx_tile_supported()
    assert use_bf16("auto", "cpu") == fast


SETTINGS = [
    *("model.size=nano", "model.slice_mixing=true", "model.image_size=64", "slab_slices=2", "model.boundary=false"),
    *("training.epochs=2", "training.single_slice_fraction=0.5", "training.validate_every=1"),
    # Seven slabs in batches of four: shares of 2 and 2, then of 1 and 2. SGD, since AdamW and Muon turn the rounding
    # errors of gradients that should be zero (those of keys' biases) into steps of full length.
    *("training.samples_per_epoch=7", "training.batch_size=4"),
    *("training.optimizer=sgd", "training.learning_rate=1e-4", "training.precision=32"),
    *("training.workers=0", "inference.direction=forward", "inference.overlap=0", "split.validation_fraction=0.3"),
]


def train(
    data: Path, out: Path, *options: str, starter: tuple[str, ...] = (), program: tuple[str, ...] = ("-m", "sam2_3dmed")
) -> subprocess.CompletedProcess[str]:
    command = [*(starter or (sys.executable,)), *program, "train", str(data), "--out", str(out)]
    command += ["--recipe", "paper_scratch", "--weights", "none", *options]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "curves.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    expected, found = read_weights(one / MODEL_FILE), read_weights(other / MODEL_FILE)
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-6
    assert any((expected[name] != found[name]).any() for name in expected)  # they are not one file
    assert len(rows(one)) == len(rows(other)) == 2
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert theirs.keys() == mine.keys()
        for name, value in mine.items():
            # Where the background is constant, max pooling meets ties, and rounding decides who gets the gradient.
            rel = 2e-2 if name.startswith("gradient/") else 1e-3
            assert theirs[name] == pytest.approx(value, rel=rel, abs=1e-5, nan_ok=True), name
        assert theirs["train/total"] == pytest.approx(mine["train/total"], rel=1e-4)


@pytest.fixture(scope="module")
def unequal_blobs(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The balls, but every fourth volume is one slice thick, so that slabs differ in length."""
    import json
    import shutil

    from sam2_3dmed.volume.volume import Volume

    root = tmp_path_factory.mktemp("unequal") / "data"
    shutil.copytree(blobs, root)
    for entry in json.loads((root / "dataset.json").read_text())["training"][::4]:
        for path in (root / entry["image"], root / entry["label"]):
            volume = Volume.read(path)
            Volume(volume.array[:, :, 3:4], volume.affine).write(path)
    return root


@pytest.fixture(scope="module")
def alone(unequal_blobs: Path) -> Path:
    folder = unequal_blobs.parent / "alone"
    train_run(TrainRequest(unequal_blobs, folder, recipe=with_settings(paper_scratch(), SETTINGS), weights="none"))
    return folder


def test_two_processes_train_to_the_weights_of_one(unequal_blobs: Path, alone: Path) -> None:
    """Single slices, then slabs of unequal length; checkpointing in the bargain. One process speaks and writes."""
    folder = unequal_blobs.parent / "two"
    answer = train(unequal_blobs, folder, "--devices", "2", "--set", "training.activation_checkpointing=true")
    assert answer.returncode == 0, answer.stderr
    assert_same_run(alone, folder)
    assert answer.stdout.count(f"Model: {folder}") == 1
    assert answer.stderr.count("validation Dice") == 3  # of two epochs, and the best
    assert "Warning" not in answer.stderr
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.long
def test_torchrun_starts_processes_that_wait_for_the_first(unequal_blobs: Path, alone: Path) -> None:
    starter = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    folder = unequal_blobs.parent / "torchrun"
    answer = train(unequal_blobs, folder, starter=starter)
    assert answer.returncode == 0, answer.stderr
    assert_same_run(alone, folder)
    again = train(unequal_blobs, folder, starter=starter)  # the first refuses, and the other one goes home
    assert again.returncode != 0
    assert again.stderr.count("there is a run here already") == 1


@pytest.mark.long
def test_passes_that_add_up_to_a_batch(unequal_blobs: Path, alone: Path) -> None:
    """Also a last batch of three slabs for four passes."""
    folder = unequal_blobs.parent / "passes"
    answer = train(unequal_blobs, folder, "--set", "training.grad_accum_steps=4")
    assert answer.returncode == 0, answer.stderr
    assert_same_run(alone, folder)


@pytest.mark.long
def test_bf16_in_two_processes_and_two_passes(unequal_blobs: Path, alone: Path) -> None:
    folder = unequal_blobs.parent / "bf16"
    options = ("--devices", "2", "--set", "training.grad_accum_steps=2", "--set", "training.precision=bf16")
    answer = train(unequal_blobs, folder, *options)
    assert answer.returncode == 0, answer.stderr
    for mine, theirs in zip(rows(alone), rows(folder), strict=True):
        assert theirs["train/total"] == pytest.approx(mine["train/total"], rel=0.02)


@pytest.mark.long
def test_two_processes_that_are_stopped_go_on_exactly(unequal_blobs: Path, alone: Path) -> None:
    """SIGTERM to the first alone, as a user sends it, in the middle of an epoch; then from that very state."""
    straight, stopped = unequal_blobs.parent / "two_straight", unequal_blobs.parent / "two_stopped"
    command = ("--devices", "2")
    assert train(unequal_blobs, straight, *command).returncode == 0
    kill = (
        "import os, signal\n"
        "from sam2_3dmed.training.loop import TrainingLoop\n"
        "save = TrainingLoop._save_within_epoch\n"
        "def save_within_epoch(self):\n"
        "    if self.progress.step == 3 and self.fabric.is_global_zero:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    save(self)\n"
        "TrainingLoop._save_within_epoch = save_within_epoch\n"
    )
    program = unequal_blobs.parent / "stopped.py"
    program.write_text(f"{kill}from sam2_3dmed.cli.main import main\nmain()\n")
    answer = train(unequal_blobs, stopped, *command, program=(str(program),))
    assert answer.returncode == 75, answer.stderr
    assert answer.stderr.splitlines()[-1] == "Terminated; train --resume goes on from the last checkpoint."
    assert not (stopped / MODEL_FILE).exists()
    assert len(rows(stopped)) == 1, "it was within the second epoch"
    resume = [
        sys.executable,
        "-m",
        "sam2_3dmed",
        "train",
        str(unequal_blobs),
        "--out",
        str(stopped),
        "--resume",
        *command,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(resume, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (stopped / "curves.csv").read_text() == (straight / "curves.csv").read_text()
    expected, found = read_weights(straight / MODEL_FILE), read_weights(stopped / MODEL_FILE)
    assert all((tensor == found[name]).all() for name, tensor in expected.items())


@pytest.mark.long
def test_two_processes_plan_their_minutes_together(unequal_blobs: Path, alone: Path) -> None:
    """Each measures; had they not agreed, one would wait for the other's next step for ever."""
    import json

    folder = unequal_blobs.parent / "two_minutes"
    answer = train(unequal_blobs, folder, "--devices", "2", "--minutes", "0.5")
    assert answer.returncode == 0, answer.stderr
    planned = json.loads((folder / "schedule.json").read_text())
    assert len(rows(folder)) == planned["epochs"]
    assert rows(folder)[-1]["step"] == planned["epochs"] * planned["batches"]
