"""The training step, the optimiser and the validation of whole volumes, for Lightning."""

from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.windows import Windows
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.losses import LossTerms, TotalLoss
from sam2_3dmed.training.optimizer import make_optimizer, make_schedule
from sam2_3dmed.training.targets import class_masks

MONITORED = "validation/dice"
"""What early stopping and the best checkpoint go by: the mean over classes and cases of whole volumes."""


class TrainingModule(lightning.LightningModule):
    """Trains a network on windows and validates it on volumes with the real predictor and the real metric.

    predictor: wraps the same network. validation: the cases that the validation loader's numbers stand for.
    steps_per_epoch: optimiser steps, which the schedule needs.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        *,
        loss: TotalLoss,
        predictor: Predictor,
        validation: Sequence[CachedCase],
        config: TrainingConfig,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.predictor = predictor
        self.validation = validation
        self.config = config
        single_slice_epochs = int(config.single_slice_fraction * config.epochs)
        self.single_slice_steps = single_slice_epochs * steps_per_epoch
        self.window_steps = (config.epochs - single_slice_epochs) * steps_per_epoch
        self.validated_step: int | None = None
        """The number of steps at the last validation."""
        self._dice: list[list[float]] = []

    def training_step(self, batch: Sequence[Windows], batch_idx: int) -> Tensor:
        """Eq. 6 over a batch, whose windows come in groups of equal length."""
        count = sum(len(windows.slices) for windows in batch)
        terms = [self._terms(windows, len(windows.slices) / count) for windows in batch]
        mean = LossTerms(*(torch.stack(parts).sum() for parts in zip(*terms, strict=True)))
        for name, value in mean._asdict().items():
            self.log(
                f"train/{name}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=count,
                prog_bar=name == "total",
            )
        rate = self.optimizers().param_groups[0]["lr"]
        self.log("learning_rate", rate, on_step=False, on_epoch=True, batch_size=1)
        return mean.total

    @property
    def sees_single_slices(self) -> bool:
        """Whether each slice is still a window of its own, without a memory."""
        return self.global_step < self.single_slice_steps

    def validation_step(self, number: int, batch_idx: int) -> None:
        """One whole volume, by the real predictor."""
        case = self.validation[number]
        classes = self.predictor.predict_slices(case.image)
        truth = case.label
        self._dice.append([dice(classes == k, truth == k) for k in range(1, len(self.predictor.labels) + 1)])

    def on_validation_epoch_end(self) -> None:
        """Means over cases, per class and over classes."""
        per_class = np.mean(self._dice, axis=0)
        self._dice.clear()
        self.validated_step = self.global_step
        for name, value in zip(self.predictor.labels.values(), per_class, strict=True):
            self.log(f"validation/dice_{name}", float(value))
        self.log(MONITORED, float(per_class.mean()), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW over all that trains, with the schedule of each part of the run (appendix B)."""
        optimizer = make_optimizer(self.network, self.config)
        schedule = make_schedule(optimizer, self.config, self.single_slice_steps, self.window_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _terms(self, windows: Windows, share: float) -> LossTerms:
        if self.sees_single_slices:
            windows = windows.single_slices()
        masks = class_masks(windows.labels, len(self.predictor.labels))
        terms = self.loss(self.network(windows.slices), masks, windows.positions)
        return LossTerms(*(term * share for term in terms))
