"""A moving average of the weights, which is what is validated and kept."""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

IN_TRAINING = "weights_in_training"
"""Beside `state_dict` in a checkpoint, which holds the average: the weights that training goes on from."""


class WeightAverage(Callback):
    """Averages the weights that train, and no others: what is frozen takes no memory and keeps its last bit.

    decay: what stays of the average in a step. The first steps keep less, (1 + step) / (10 + step), or an early average
    would be little but the weights it began with.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._trained: dict[str, nn.Parameter] = {}
        self._other: dict[str, Tensor] = {}
        """The average, or while that is in the module, the weights in training."""
        self._average_is_in = False
        self._step = 0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are, or go on with a checkpoint's average."""
        self._trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self._other = {
            name: self._other.get(name, p.detach()).to(p.device, copy=True) for name, p in self._trained.items()
        }

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count from where training starts."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """Take the new weights in, if this batch ended a step."""
        step = trainer.global_step
        if step > self._step:
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(list(self._other.values()), list(self._trained.values()), step)
        self._step = step

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the average."""
        self._use(average=True)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Train on, from the weights in training."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._use(average=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the average behind."""
        self._use(average=True)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average goes where weights are looked for."""
        state = checkpoint["state_dict"]
        in_module = {name: state[name] for name in self._trained}
        average, trained = (in_module, self._other) if self._average_is_in else (self._other, in_module)
        checkpoint["state_dict"] = {**state, **average}
        checkpoint[IN_TRAINING] = trained

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give the module, which has loaded the average, the weights in training."""
        trained = checkpoint[IN_TRAINING]
        self._other = {name: checkpoint["state_dict"][name] for name in trained}
        pl_module.load_state_dict(trained, strict=False)

    @torch.no_grad()
    def _use(self, *, average: bool) -> None:
        """Have the average in the module, or the weights in training."""
        if average == self._average_is_in:
            return
        for name, parameter in self._trained.items():
            in_module = parameter.clone()
            parameter.copy_(self._other[name])
            self._other[name].copy_(in_module)
        self._average_is_in = average
