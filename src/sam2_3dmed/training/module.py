"""The training step, the optimiser and the validation of whole volumes, for Lightning."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.windows import ViewWindows, Windows
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.inference.windows import Window
from sam2_3dmed.model.network import Prediction, SAM2For3dMed
from sam2_3dmed.training.division import Division
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.losses import LossTerms, TotalLoss, position_error
from sam2_3dmed.training.means import EpochMeans, merged
from sam2_3dmed.training.optimizer import Cooldown, make_optimizer, make_schedule
from sam2_3dmed.training.parallel import Team, gather
from sam2_3dmed.training.targets import class_masks, relative_positions

MONITORED = "validation/dice"
"""What early stopping and the best checkpoint go by: the mean over classes and cases of whole volumes."""


class Slice(NamedTuple):
    """One slice of a validated volume."""

    image: NDArray[np.floating]
    """(C, H0, W0) in [0, 1]."""
    truth: NDArray[np.integer]
    """(H0, W0) class indices, as is the next."""
    predicted: NDArray[np.integer]


class TrainingModule(lightning.LightningModule):
    """Trains a network on windows and validates it on volumes with the real predictor and the real metric.

    predictor: wraps the same network. validation: the cases that the validation loader's numbers stand for.
    division: how batches are divided over processes and passes. features: where those of windows of views come from.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        *,
        loss: TotalLoss,
        predictor: Predictor,
        validation: Sequence[CachedCase],
        config: TrainingConfig,
        division: Division,
        team: Team | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.predictor = predictor
        self.validation = validation
        self.config = config
        self.features = features
        self.division = division
        self.team = team or Team()
        self.steps_per_epoch = steps_per_epoch = division.steps
        self.single_slice_steps = config.single_slice_epochs * steps_per_epoch
        self.window_steps = (config.epochs - config.single_slice_epochs) * steps_per_epoch
        self.cooldown = Cooldown()
        self.means = EpochMeans()
        """Of this epoch so far; whoever writes the curves empties it."""
        self.latest: LossTerms | None = None
        """Of the batch seen last."""
        self.shown: Slice | None = None
        """Of the volume validated first, the slice with most foreground."""
        self._scores: dict[int, list[float]] = {}

    def training_step(self, batch: Sequence[Windows] | Sequence[ViewWindows], batch_idx: int) -> Tensor:
        """Eq. 6 over this process's part of a batch, whose windows come in groups of equal length.

        Returns: the loss such that its mean over processes and passes is that of the whole batch.
        """
        part = self.division.part(batch_idx)
        count = sum(len(windows.labels) for windows in batch)
        terms = [self._terms(windows, len(windows.labels) / count, part.counted > 0) for windows in batch]
        mean = LossTerms(*(torch.stack(parts).sum() for parts in zip(*terms, strict=True)))
        self.latest = LossTerms(*(value.detach() for value in mean))
        for name, value in self.latest._asdict().items():
            self.means.add(f"train/{name}", value, count if part.counted else 0)
        self.means.add("learning_rate", self.optimizers().param_groups[0]["lr"])
        self.log("loss", self.latest.total, on_step=True, on_epoch=False, prog_bar=True, logger=False)
        return mean.total * part.weight

    @property
    def sees_single_slices(self) -> bool:
        """Whether each slice is still a window of its own, without a memory."""
        return self.global_step < self.single_slice_steps

    def validation_step(self, number: int, batch_idx: int) -> None:
        """One whole volume, by the real predictor."""
        case = self.validation[number]
        errors: list[float] = []

        def note(window: Window, predicted: Tensor) -> None:
            order = torch.tensor(window.order, device=predicted.device).unsqueeze(0)
            if len(window.order) > 1:
                errors.append(float(position_error(predicted.unsqueeze(0).float(), relative_positions(order))))

        classes = self.predictor.predict_slices(case.image, note)
        truth = case.label
        scores = [dice(classes == k, truth == k) for k in range(1, len(self.predictor.labels) + 1)]
        self._scores[number] = [*scores, float(np.mean(errors)) if errors else math.nan]
        if number == 0:
            index = int(np.argmax((truth > 0).sum(axis=(1, 2))))
            self.shown = Slice(*(np.array(part[index]) for part in (case.image, truth, classes)))

    def on_validation_epoch_end(self) -> None:
        """Means over cases, per class and over classes."""
        scores = {number: case for part in gather(self._scores) for number, case in part.items()}
        self._scores = {}
        *per_class, error = np.mean([scores[number] for number in sorted(scores)], axis=0)
        for name, value in zip(self.predictor.labels.values(), per_class, strict=True):
            self.log(f"validation/dice_{name}", float(value))
        self.log(MONITORED, float(np.mean(per_class)), prog_bar=True)
        if not math.isnan(error):
            self.log("position_error/validation", float(error))

    def configure_optimizers(self) -> Any:
        """AdamW over all that trains, with the schedule of each part of the run (appendix B)."""
        optimizer = make_optimizer(self.network, self.config, self.network.encoder.vision_encoder.layers())
        schedule = make_schedule(optimizer, self.config, self.single_slice_steps, self.window_steps, self.cooldown)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By the norm of all gradients, as Lightning does, but also under autocast to bf16.

        There it refuses a fused optimiser, since such a one may undo a scaling of gradients; bf16 needs none.
        """
        if gradient_clip_val is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a run that goes on from here must know besides weights."""
        means = merged(gather(self.means.state_dict()))
        checkpoint["run"] = {"means": means, "cooldown": asdict(self.cooldown)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it again."""
        if self.team.first:  # of all processes
            self.means.load_state_dict(checkpoint["run"]["means"])
        vars(self.cooldown).update(checkpoint["run"]["cooldown"])

    def _terms(self, windows: Windows | ViewWindows, share: float, counts: bool) -> LossTerms:
        if self.sees_single_slices:
            windows = windows.single_slices()
        masks = class_masks(windows.labels, len(self.predictor.labels))
        prediction = self._predict(windows)
        if prediction.relative_position is not None and windows.positions.shape[1] > 1:
            error = position_error(prediction.relative_position.detach(), relative_positions(windows.positions))
            self.means.add("position_error/training", error, len(windows.labels) if counts else 0)
        terms = self.loss(prediction, masks, windows.positions)
        return LossTerms(*(term * share for term in terms))

    def _predict(self, windows: Windows | ViewWindows) -> Prediction:
        if isinstance(windows, Windows):
            return self.network(windows.slices)
        assert self.features is not None
        return self.network.decode_compact(self.features(windows))
