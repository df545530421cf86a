"""Checkpoints on disk: whole or not at all, the newest whole one is found, a broken one is set aside."""

import logging
import re
import zipfile
from pathlib import Path

import pytest
import torch

from sam2_3dmed.errors import DataError
from sam2_3dmed.training.checkpoints import (
    BEST_CHECKPOINT,
    Checkpoints,
    best_state,
    is_whole,
    newest_whole_state,
    read_checkpoint,
    saved_states,
    step_of,
    write_checkpoint,
)


def save(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        write_checkpoint({"number": number, "weights": torch.arange(1000.0)}, path)
    return paths


def test_a_checkpoint_can_be_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "new", "step-00000007.ckpt")
    assert list(path.parent.iterdir()) == [path]
    assert read_checkpoint(path)["number"] == 0


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
        write_checkpoint({"weights": torch.arange(5.0)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_states_are_ordered_by_their_steps(tmp_path: Path) -> None:
    early, late, latest = save(tmp_path, "step-00000009.ckpt", "step-00000010.ckpt", "step-100000000.ckpt")
    save(tmp_path, BEST_CHECKPOINT)
    assert saved_states(tmp_path) == [latest, late, early]


class Stranger:
    """What weights_only refuses to load."""


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "empty", "a list", "a class", "no zip", "a text"])
def test_a_broken_state_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    early, late = save(tmp_path, "step-00000001.ckpt", "step-00000002.ckpt")
    content = bytearray(late.read_bytes())
    content[len(content) // 2] ^= 1
    if damage in ("a list", "a class"):
        torch.save([1] if damage == "a list" else {"x": Stranger()}, late)
    elif damage == "a text":
        with zipfile.ZipFile(late, "w") as archive:
            archive.writestr("text", "no checkpoint")
    else:
        damaged = {"cut short": content[:-100], "a flipped bit": content, "empty": b"", "no zip": b"x" * 1000}
        late.write_bytes(damaged[damage])
    assert not is_whole(late)
    with caplog.at_level(logging.WARNING):
        assert newest_whole_state(tmp_path) == early
    assert caplog.messages == [f"{late}: broken, now step-00000002.broken; the one before it is used"]
    assert newest_whole_state(tmp_path) == early
    assert saved_states(tmp_path) == [early]


def test_every_byte_of_a_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each in turn is another: the state is as it was, or the one before is taken, and nothing else happens."""
    early, late = save(tmp_path, "step-00000001.ckpt", "step-00000002.ckpt")
    content = late.read_bytes()
    broken = 0
    for place in [*range(0, len(content) - 700, 61), *range(len(content) - 700, len(content), 7)]:
        late.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with caplog.at_level(logging.CRITICAL):
            found = newest_whole_state(tmp_path)
        assert found in (early, late)
        if found == late:
            read = read_checkpoint(late)
            assert read["number"] == 1
            assert torch.equal(read["weights"], torch.arange(1000.0))
        broken += found == early
    assert broken > 50


def test_a_state_of_another_network_is_none(tmp_path: Path) -> None:
    parts = {"optimizer": {}, "schedule": {}, "progress": {}, "means": {}, "cooldown": {}, "early_stopping": {}}
    parts |= {"weights_in_training": None, "best_score": 0.5}
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    others = [
        {"a": torch.zeros(2)},
        weights | {"c": torch.zeros(1)},
        weights | {"b": torch.zeros(4)},
        weights | {"b": torch.zeros(3, dtype=torch.int32)},
        weights | {"b": 5},
    ]
    for step, state in enumerate([weights, *others]):
        write_checkpoint(parts | {"state_dict": state}, tmp_path / f"step-{step:08d}.ckpt")
    for step, missing in enumerate(parts, start=len(others) + 1):
        write_checkpoint(
            {k: v for k, v in parts.items() if k != missing} | {"state_dict": weights},
            tmp_path / f"step-{step:08d}.ckpt",
        )
    assert step_of(newest_whole_state(tmp_path, weights)) == 0
    assert best_state(tmp_path, weights)["state_dict"].keys() == weights.keys()


def test_no_state(tmp_path: Path) -> None:
    assert newest_whole_state(tmp_path / "none") is None


def test_best_weights_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / BEST_CHECKPOINT
    write_checkpoint({"state_dict": {"a": torch.zeros(1)}, "best_score": 0.5}, path)
    assert best_state(tmp_path)["best_score"] == 0.5
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: missing or broken"):
        best_state(tmp_path)


def test_only_the_latest_states_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, minutes=None)
    for step in (1, 2, 3):
        checkpoints.save({"number": step}, step)
    checkpoints.save_best({"weight": torch.ones(1)}, 0.5)
    assert [step_of(path) for path in saved_states(tmp_path)] == [3, 2]
    assert best_state(tmp_path)["best_score"] == 0.5
    assert not checkpoints.is_due
    assert Checkpoints(tmp_path, keep=2, minutes=1e-9).is_due
