"""Checkpoints on disk: the latest states of a run, of which each can be resumed, and the best weights."""

import logging
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from sam2_3dmed.errors import DataError
from sam2_3dmed.files.archives import is_whole_zip
from sam2_3dmed.processes.atomic import replacing

BEST_CHECKPOINT = "best.ckpt"
STATE_PARTS: Mapping[str, type | UnionType] = {
    "state_dict": dict,
    "weights_in_training": dict | None,
    "optimizer": dict,
    "schedule": dict,
    "progress": dict,
    "means": dict,
    "cooldown": dict,
    "early_stopping": dict,
    "best_score": float | None,
}
"""The content of a state."""
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
    """The content of a checkpoint, on the CPU. Raises: DataError if it is missing, or damaged in any way."""
    if is_whole_zip(path):  # torch does not compare all checksums
        with suppress(Exception):  # it raises many kinds for damaged files
            content = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(content, dict):
                return content
    raise DataError(f"{path}: missing or broken")


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    return sorted((path for path in folder.glob("*") if _STEP.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step after which a state was saved."""
    return int(_STEP.sub(r"\1", path.name))


def newest_whole_state(folder: Path, weights: Mapping[str, Tensor] | None = None) -> Path | None:
    """The newest state that can be gone on from; a broken one, from a bad disk or a copy cut short, is set aside.

    weights: of the network that goes on; a state of another network is no better than a broken one.
    """
    for path in saved_states(folder):
        if _is_usable(path, weights):
            return path
        aside = path.with_suffix(".broken")
        logger.warning("%s: broken, now %s; the one before it is used", path, aside.name)
        with suppress(OSError):
            path.replace(aside)
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and can be read from its beginning to its end."""
    return _is_usable(path, None)


def _is_usable(path: Path, weights: Mapping[str, Tensor] | None) -> bool:
    try:
        content = read_checkpoint(path)
    except DataError:
        return False
    return weights is None or (
        content.keys() >= STATE_PARTS.keys()
        and all(isinstance(content[name], kind) for name, kind in STATE_PARTS.items())
        and _fits(content["state_dict"], weights)
    )


def _fits(found: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of the same network."""
    return found.keys() == weights.keys() and all(
        isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == (weights[name].shape, weights[name].dtype)
        for name, tensor in found.items()
    )


def best_state(folder: Path, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """`state_dict` and `best_score` of a folder's best checkpoint; of its newest state, if that is missing or broken.

    Raises: DataError if there is none of these.
    """
    path = folder / BEST_CHECKPOINT
    with suppress(DataError):
        content = read_checkpoint(path)
        if isinstance(content.get("state_dict"), dict) and (weights is None or _fits(content["state_dict"], weights)):
            return content
    newest = newest_whole_state(folder, weights)
    if newest is None:
        raise DataError(f"{path}: missing or broken; without it the best weights are lost")
    logger.warning("%s: missing or broken; the weights of %s are used, whose score is not known", path, newest.name)
    return read_checkpoint(newest) | {"best_score": math.nan}
