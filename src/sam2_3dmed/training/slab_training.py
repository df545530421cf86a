"""How SAM2-3dMed trains: steps on slabs, its optimiser, and the validation of whole volumes by the real predictor."""

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import Slabs, ViewSlabs
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.inference.slabs import Slab
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.batch_sharding import Division
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.losses.relative_position import position_error, relative_positions
from sam2_3dmed.training.optimizer import make_optimizer, make_schedule
from sam2_3dmed.training.step import training_step
from sam2_3dmed.training.trainable import Trainable


class SlabTraining(Trainable):
    """Trains a network on slabs.

    Args:
        network: SAM2-3dMed.
        loss: of the recipe.
        predictor: wraps the same network.
        features: gives the features of slabs of views.
        validation, config, division, distributed: see `Trainable`.
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
        distributed: DistributedContext | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__(
            network,
            class_names=tuple(predictor.labels.values()),
            validation=validation,
            config=config,
            division=division,
            distributed=distributed,
        )
        self.network: SAM2For3dMed = network
        self.loss = loss
        self.predictor = predictor
        self.features = features
        self.single_slice_steps = config.single_slice_epochs * self.steps_per_epoch
        self.slab_steps = (config.epochs - config.single_slice_epochs) * self.steps_per_epoch

    def parts(self) -> Mapping[str, nn.Module]:
        """The parts of the paper, as far as the network has them."""
        network = self.network
        parts: dict[str, nn.Module | None] = {
            "encoder": network.encoder,
            "srpp": network.srpp,
            "boundary": network.boundary,
            "segmentation": network.segmentation,
            "fusion": network.boundary_to_segmentation,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def training_step(self, batch: Sequence[Slabs] | Sequence[ViewSlabs], number: int) -> Tensor:
        """See `Trainable`; batch: groups of slabs of equal length."""
        part = self.division.part(number)
        self.network.draw = self.progress.step
        count = sum(len(slabs.labels) for slabs in batch)
        losses = training_step(
            self.network,
            self.loss,
            batch,
            len(self.predictor.labels),
            single_slices=self.sees_single_slices,
            features=self.features,
            on_position_error=lambda error, slabs: self.means.add(
                "position_error/training", error, slabs if part.counted else 0
            ),
        )
        self.count_pass(losses, count, part.counted)
        return losses["total"] * part.weight

    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        """Class indices of a validation case, and the mean error of SRPP over its slabs."""
        errors: list[float] = []

        def note(slab: Slab, predicted: Tensor) -> None:
            order = torch.tensor(slab.order, device=predicted.device).unsqueeze(0)
            if len(slab.order) > 1:
                errors.append(float(position_error(predicted.unsqueeze(0).float(), relative_positions(order))))

        case = self.validation[number]
        classes = self.predictor.predict_slices(case.image, note, reference=case.label)
        return classes, float(np.mean(errors)) if errors else math.nan

    def validation_seconds(self) -> float:
        """From some slices of the first case."""
        few = slice(2 * self.predictor.slab_slices)
        image, label = self.validation[0].image[few], self.validation[0].label[few]
        self.predictor.predict_slices(image, reference=label)  # the first pass is slower than those that follow
        started = time.monotonic()
        self.predictor.predict_slices(image, reference=label)
        return (time.monotonic() - started) / len(image) * sum(case.num_slices for case in self.validation)

    def configure_optimizers(self) -> tuple[Optimizer, LambdaLR]:
        """The recipe's optimiser over all that trains, with the schedule of each part of the run (appendix B)."""
        optimizer = make_optimizer(self.network, self.config, self.network.encoder.vision_encoder.layers())
        schedule = make_schedule(optimizer, self.config, self.single_slice_steps, self.slab_steps, self.cooldown)
        return optimizer, schedule
