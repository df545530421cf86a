"""Steps that leave no trace: how long they take, or how the loss answers to a rate, before a run begins."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.training.run_module import RunModule
from sam2_3dmed.training.trainer import base_trainer


def try_steps(
    module: RunModule, loader: Any, training: TrainingConfig, callbacks: Sequence[Callback], num_steps: int
) -> None:
    """Train for some steps, or until a callback stops it (-1), with a fresh optimiser; then put the weights back."""
    with _put_back(module):
        trainer = base_trainer(
            training,
            module.distributed,
            max_steps=num_steps,
            max_epochs=-1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=list(callbacks),
        )
        trainer.fit(module, loader)


@contextmanager
def _put_back(module: RunModule) -> Iterator[None]:
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    single_slice_steps = module.single_slice_steps
    try:
        yield
    finally:
        module.load_state_dict(before, strict=False)
        module.single_slice_steps = single_slice_steps
        module.means.clear()


class Stopwatch(Callback):
    """Seconds a batch, its loading included: of each kind in turn, single slices (true) or slabs.

    The first batch of a kind is left out. Each kind takes `limit_seconds`, but at least three batches and `most` at the
    most. Where processes train together, the times of the first one count.
    """

    def __init__(self, kinds: Sequence[bool], limit_seconds: float, most: int) -> None:
        self.kinds = kinds
        self.limit_seconds = limit_seconds
        self.most = most
        self.seconds: list[float] = []
        self._ends: list[float] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the first kind."""
        self._be(pl_module, self.kinds[0])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Note the time; go on to the next kind, or stop."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ends.append(time.monotonic())
        measured, count = self._ends[-1] - self._ends[0], len(self._ends)
        enough = count >= self.most or (count > 2 and measured > self.limit_seconds)
        enough, mean = trainer.strategy.broadcast((enough, measured / max(1, count - 1)))
        if not enough:
            return
        self.seconds.append(mean)
        self._ends.clear()
        if len(self.seconds) < len(self.kinds):
            self._be(pl_module, self.kinds[len(self.seconds)])
        else:
            trainer.should_stop = True

    def _be(self, module: lightning.LightningModule, single_slices: bool) -> None:
        assert isinstance(module, RunModule)
        module.single_slice_steps = sys.maxsize if single_slices else 0
