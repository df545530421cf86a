"""Where a run ends: after its epochs, or earlier where validation no longer gains, but not with the rate still high."""

import logging
import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.training.run_module import MONITORED, RunModule

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Ends a run `config.patience` validations after the best one, and has the last epoch validated in any case.

    Much of what a cosine gains comes at its end, as the rate falls. With `config.cooldown`, then, exhausted patience
    does not stop the run: the rate falls from where it is to its final value within that share of the epochs done, and
    there the run ends. Where no more epochs than that are left, the cosine goes on as it is. Epochs of single slices do
    not count, since those of slabs come in any case.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.waited = 0
        self.last_epoch: int | None = None
        """The number of epochs of a run that ends early."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on to the end that a checkpoint tells of."""
        if self.last_epoch is not None:
            trainer.fit_loop.max_epochs = self.last_epoch

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run may go on within its last epoch."""
        self._validate_last(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Have the last epoch validated."""
        self._validate_last(trainer)

    def _validate_last(self, trainer: lightning.Trainer) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count, and decide."""
        assert isinstance(pl_module, RunModule)
        if self.config.patience is None or self.last_epoch is not None or pl_module.sees_single_slices:
            return
        score = float(trainer.callback_metrics[MONITORED])
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.config.patience:
            self._end(trainer, pl_module)

    def _end(self, trainer: lightning.Trainer, module: RunModule) -> None:
        done = trainer.current_epoch + 1
        more = math.ceil(self.config.cooldown * done)
        assert trainer.max_epochs is not None
        if done + more >= trainer.max_epochs:
            return
        self.last_epoch = trainer.fit_loop.max_epochs = done + more
        module.cooldown.start, module.cooldown.steps = trainer.global_step, more * module.steps_per_epoch
        logger.info("no better validation Dice for %d validations: %d more epochs, then the end", self.waited, more)

    def state_dict(self) -> dict[str, Any]:
        """What was counted and decided."""
        return {"best": self.best, "waited": self.waited, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that."""
        self.best, self.waited, self.last_epoch = (state_dict[key] for key in ("best", "waited", "last_epoch"))
