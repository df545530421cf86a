"""Which share of training time is spent waiting for slabs."""

import logging
import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

_WORTH_A_WORD = 0.1

logger = logging.getLogger(__name__)


class LoaderShare(Callback):
    """Tells the loggers `loader_share` for every epoch, and the log that of the whole run.

    It is the time between one batch's end and the next one's start, over that and the steps'. Validation and
    checkpoints are no part of either. It is not in curves.csv, which holds what a repeated run repeats.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._epoch, self._run = _Seconds(), _Seconds()
        self._since = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on the first batch is waited for."""
        self._epoch = _Seconds()
        self._since = self._clock()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        passed = self._passed()
        self._epoch.waiting += passed
        self._run.waiting += passed

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        passed = self._passed()
        self._epoch.working += passed
        self._run.working += passed

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tell the loggers."""
        for to in trainer.loggers:
            to.log_metrics({"loader_share": self._epoch.share}, step=trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tell the log."""
        advice = "; more training.workers may help" if self._run.share > _WORTH_A_WORD else ""
        logger.info("waiting for slabs took %.1f%% of training%s", 100 * self._run.share, advice)

    def _passed(self) -> float:
        now = self._clock()
        passed, self._since = now - self._since, now
        return passed


class _Seconds:
    """Of waiting and of working."""

    def __init__(self) -> None:
        self.waiting = self.working = 0.0

    @property
    def share(self) -> float:
        total = self.waiting + self.working
        return self.waiting / total if total > 0 else 0.0
