"""Checkpoints on disk: the latest states of a run, of which each can be resumed, and the best weights."""

import logging
import re
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import replacing

BEST_CHECKPOINT = "best.ckpt"
_STEP = re.compile(r"step-(\d+)\.ckpt")

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, of which the latest `keep` stay, besides the best.

    minutes: between states within an epoch; None for none.
    """

    def __init__(self, folder: Path, *, keep: int, minutes: float | None) -> None:
        self.folder = folder
        self.keep = keep
        self.minutes = minutes
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a state within the epoch."""
        return self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Save the state after a step, and remove old ones. Raises: as `write_checkpoint`."""
        write_checkpoint(state, self.folder / f"step-{step:08d}.ckpt")
        self._saved_at = time.monotonic()
        for old in saved_states(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)

    def save_best(self, weights: Mapping[str, Any], score: float) -> None:
        """Save the best weights so far. Raises: as `write_checkpoint`."""
        write_checkpoint({"state_dict": weights, "best_score": score}, self.folder / BEST_CHECKPOINT)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint whole, or leave what was there. Raises: OSError if the disk is full or not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch hides why a write failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    return sorted((path for path in folder.glob("*") if _STEP.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step after which a state was saved."""
    return int(_STEP.sub(r"\1", path.name))


def newest_whole_state(folder: Path) -> Path | None:
    """The newest state that is whole; a broken one, from a bad disk or a copy cut short, is set aside."""
    for path in saved_states(folder):
        if is_whole(path):
            return path
        aside = path.with_suffix(".broken")
        logger.warning("%s: broken, now %s; the one before it is used", path, aside.name)
        with suppress(OSError):
            path.replace(aside)
    return None


def best_state(folder: Path) -> dict[str, Any]:
    """`state_dict` and `best_score` of a folder's best checkpoint. Raises: DataError if it is missing or broken."""
    path = folder / BEST_CHECKPOINT
    if not is_whole(path):
        raise DataError(f"{path}: missing or broken; without it the best weights are lost")
    return read_checkpoint(path)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and its checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
