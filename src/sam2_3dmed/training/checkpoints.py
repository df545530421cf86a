"""What a run can be gone on from: the last whole states, and the best weights; each file whole or not at all."""

import logging
import re
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.processes.signals import Terminated, take_sigterm
from sam2_3dmed.training.run_module import MONITORED

BEST_CHECKPOINT = "best.ckpt"
_NAME = "step-{:08d}.ckpt"
_STEP = re.compile(r"step-(\d+)\.ckpt")

logger = logging.getLogger(__name__)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there.

    Lightning's own way makes a second copy in memory, and passes through the folder for temporary files: a move from
    another disk is no longer all or nothing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: there is no room, or no permission; what was there stays.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch hides why a write failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Checkpoints(Checkpoint):
    """Saves the state at the end of every epoch, within an epoch every so often and on SIGTERM, and the best weights.

    folder: for the checkpoints. loader: of the training slabs. keep: how many states. minutes: between states within
    an epoch; none: only on SIGTERM.
    """

    def __init__(self, folder: Path, loader: Any, *, keep: int, minutes: float | None) -> None:
        self.folder = folder
        self.loader = loader
        self.keep = keep
        self.minutes = minutes
        self.best_score: float | None = None
        self._saved_at = time.monotonic()
        self._steps = 0
        self.terminating = False
        """Whether SIGTERM has come."""
        self._validating = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Clear away what a killed run was writing."""
        if trainer.is_global_zero:
            for left in self.folder.glob(".*.partial"):
                left.unlink(missing_ok=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take SIGTERM, which Lightning has just taken and gives back when all is over.

        Lightning would look at it after a step without saving, and with several processes it starts to talk to the
        others inside the handler, wherever they are.
        """
        self._saved_at, self._steps = time.monotonic(), trainer.global_step
        take_sigterm(self._on_sigterm)

    def _on_sigterm(self) -> None:
        self.terminating = True
        if self._validating:  # nothing is lost that is not done again
            raise Terminated

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After a step, unless the epoch ends with it: save if it is time; stop if that was asked for."""
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if not stepped or batch_idx + 1 == trainer.num_training_batches:
            return
        due = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        terminating, due = _of_any_rank(trainer, self.terminating, due)
        if terminating or due:
            self._save(trainer)
        if terminating:
            raise Terminated

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validation may be longer than the time that is left."""
        if any(_of_any_rank(trainer, self.terminating)):
            raise Terminated
        self._validating = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        self._validating = False
        score = float(trainer.callback_metrics[MONITORED])
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            trainer.save_checkpoint(self.folder / BEST_CHECKPOINT)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save."""
        self._save(trainer)
        if any(_of_any_rank(trainer, self.terminating)):
            raise Terminated

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / _NAME.format(trainer.global_step))
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for old in saved_states(self.folder)[self.keep :]:
                old.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What the best weights reached."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that."""
        self.best_score = state_dict["best_score"]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Place the sampler where the run was, before the loader's workers draw their first batches.

        Lightning knows neither of a place within an epoch, nor does it name the epoch in time for the workers.
        """
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        sampler = self.loader.batch_sampler
        sampler.set_epoch(loop["epoch_progress"]["current"]["processed"])
        sampler.skip_batches(0 if batches["is_last_batch"] else batches["current"]["processed"])


def _of_any_rank(trainer: lightning.Trainer, *flags: bool) -> list[bool]:
    """Each flag as it must hold for all processes: set if one has it set."""
    if trainer.world_size == 1:
        return list(flags)
    return [trainer.strategy.reduce_boolean_decision(flag, all=False) for flag in flags]


def forget_states(folder: Path) -> None:
    """Remove the states of an earlier run in the same place, which would pass for later ones of a new run."""
    for path in saved_states(folder):
        path.unlink()


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    return sorted((path for path in folder.glob("*") if _STEP.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step after which a state was saved."""
    match = _STEP.fullmatch(path.name)
    assert match
    return int(match[1])


def newest_whole_state(folder: Path) -> Path | None:
    """The newest state that is whole; one that is not, from a broken disk or a copy cut short, is set aside."""
    for path in saved_states(folder):
        if is_whole(path):
            return path
        aside = path.with_suffix(".broken")
        logger.warning("%s: broken, now %s; the one before it is used", path, aside.name)
        with suppress(OSError):
            path.replace(aside)
    return None


def best_state(folder: Path) -> dict[str, Any]:
    """What the best checkpoint of a folder holds.

    Raises:
        DataError: there is none, or it is broken.
    """
    path = folder / BEST_CHECKPOINT
    if not is_whole(path):
        raise DataError(f"{path}: missing or broken; without it the best weights are lost")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and its checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
