"""When a run ends: after its epochs, or earlier where validation gains no more, but not with the rate still high."""

import logging
import math
from typing import Any

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.training.optimizer import Cooldown
from sam2_3dmed.training.trainable import Progress

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Ends a run `config.patience` validations after the best one.

    Much of what a cosine gains comes at its end, as the rate falls. With `config.cooldown`, exhausted patience
    therefore does not stop the run at once: the rate falls to its final value within that share of the epochs done,
    and there the run ends. If no more epochs than that are left, the cosine goes on as it is. Epochs of single slices
    do not count, since the epochs of slabs come in any case.

    cooldown: of the schedule; is set when patience is exhausted.
    """

    def __init__(self, config: TrainingConfig, cooldown: Cooldown, steps_per_epoch: int) -> None:
        self.config = config
        self.cooldown = cooldown
        self.steps_per_epoch = steps_per_epoch
        self.best: float | None = None
        self.waited = 0
        self.last_epoch: int | None = None
        """The number of epochs of a run that ends early."""

    @property
    def epochs(self) -> int:
        """How many epochs the run has."""
        return self.config.epochs if self.last_epoch is None else self.last_epoch

    def validates(self, epoch: int) -> bool:
        """Whether an epoch ends with a validation; the last one does in any case. epoch: from 0."""
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.epochs

    def count(self, score: float, progress: Progress) -> None:
        """Take in a validation of slabs. progress: the epoch that it ends is not counted as done yet."""
        if self.config.patience is None or self.last_epoch is not None:
            return
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        done = progress.epoch + 1
        more = math.ceil(self.config.cooldown * done)
        if self.waited < self.config.patience or done + more >= self.config.epochs:
            return
        self.last_epoch = done + more
        self.cooldown.start, self.cooldown.steps = progress.step, more * self.steps_per_epoch
        logger.info("no better validation Dice for %d validations: %d more epochs, then the end", self.waited, more)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
