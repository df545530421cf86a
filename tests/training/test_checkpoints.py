"""Checkpoints on disk: whole or not at all, the newest whole one is found, a broken one is set aside."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sam2_3dmed.errors import DataError
from sam2_3dmed.training.checkpoints import (
    BEST_CHECKPOINT,
    Checkpoints,
    WholeFiles,
    best_state,
    forget_states,
    is_whole,
    newest_whole_state,
    saved_states,
)


def save(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        WholeFiles().save_checkpoint({"number": number, "weights": torch.arange(1000.0)}, path)
    return paths


def test_a_checkpoint_can_be_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "new", "step-00000007.ckpt")
    assert list(path.parent.iterdir()) == [path]
    assert WholeFiles().load_checkpoint(path)["number"] == 0


def test_the_reason_of_a_failure_is_told_and_the_file_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save(tmp_path, "step-00000007.ckpt")
    before = path.read_bytes()
    folder = tmp_path / "gone"

    def vanish(*arguments: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(Path, "replace", vanish)
    with pytest.raises(FileNotFoundError):
        WholeFiles().save_checkpoint({"weights": torch.arange(5.0)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_states_are_ordered_by_their_steps(tmp_path: Path) -> None:
    early, late, latest = save(tmp_path, "step-00000009.ckpt", "step-00000010.ckpt", "step-100000000.ckpt")
    save(tmp_path, BEST_CHECKPOINT)
    assert saved_states(tmp_path) == [latest, late, early]
    forget_states(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [BEST_CHECKPOINT]


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "empty"])
def test_a_broken_state_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    early, late = save(tmp_path, "step-00000001.ckpt", "step-00000002.ckpt")
    content = bytearray(late.read_bytes())
    content[len(content) // 2] ^= 1
    late.write_bytes({"cut short": content[:-100], "a flipped bit": content, "empty": b""}[damage])
    assert not is_whole(late)
    with caplog.at_level(logging.WARNING):
        assert newest_whole_state(tmp_path) == early
    assert caplog.messages == [f"{late}: broken, now step-00000002.broken; the one before it is used"]
    assert newest_whole_state(tmp_path) == early
    assert saved_states(tmp_path) == [early]


def test_no_state(tmp_path: Path) -> None:
    assert newest_whole_state(tmp_path / "none") is None


def test_best_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (path,) = save(tmp_path, BEST_CHECKPOINT)
    assert best_state(tmp_path)["number"] == 0
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: missing or broken"):
        best_state(tmp_path)


class Sampler:
    """Notes where it is placed."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip_batches(self, count: int) -> None:
        self.skipped = count


@pytest.mark.parametrize(("last", "skipped"), [(False, 4), (True, 0)])
def test_the_sampler_is_placed_where_the_run_was(tmp_path: Path, last: bool, skipped: int) -> None:
    sampler = Sampler()
    callback = Checkpoints(tmp_path, SimpleNamespace(batch_sampler=sampler), keep=1, minutes=None)
    loop = {
        "epoch_progress": {"current": {"processed": 3}},
        "epoch_loop.batch_progress": {"is_last_batch": last, "current": {"processed": 4}},
    }
    callback.on_load_checkpoint(None, None, {"loops": {"fit_loop": loop}})
    assert (sampler.epoch, sampler.skipped) == (3, skipped)
