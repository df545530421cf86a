"""The training step and the validation of patch-based systems, and their run."""

import time
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.baselines.cache import GriddedCase, PatchCase
from sam2_3dmed.baselines.losses import deep_supervision_loss
from sam2_3dmed.baselines.networks import all_logits
from sam2_3dmed.baselines.patches import PatchDataset, Patches, collate
from sam2_3dmed.baselines.predictor import PatchPredictor
from sam2_3dmed.baselines.recipe import PatchConfig, PatchTrainingConfig
from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.training.batch_sharding import Division
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.fit import FitResult, fit_module
from sam2_3dmed.training.loader import epoch_loader
from sam2_3dmed.training.optimizer import falling_cosine, make_optimizer, make_schedule
from sam2_3dmed.training.run_module import RunModule


class PatchModule(RunModule):
    """Trains a network on patches and validates it on volumes with the real predictor.

    predictor: wraps the same network. validation: cases with their grids.
    """

    def __init__(
        self,
        predictor: PatchPredictor,
        *,
        validation: Sequence[GriddedCase],
        config: PatchTrainingConfig,
        division: Division,
        distributed: DistributedContext,
    ) -> None:
        super().__init__(
            predictor.network,
            class_names=tuple(predictor.labels.values()),
            validation=[case.cached for case in validation],
            config=config,
            division=division,
            distributed=distributed,
        )
        self.predictor = predictor
        self.recipe = config
        self.grids = [case.grid for case in validation]
        self.background = predictor.spec.has_background

    def parts(self) -> Mapping[str, nn.Module]:
        """The network as one."""
        return {"network": self.network}

    def training_step(self, batch: Patches, batch_idx: int) -> Tensor:
        """The loss of this process's part of a batch, such that its mean over parts is that of the whole."""
        part = self.division.part(batch_idx)
        # What a network leaves out at random depends on the place in the run alone, so a resumed run does the same.
        place = [self.config.seed, self.current_epoch, batch_idx, self.distributed.rank]
        torch.manual_seed(int(np.random.default_rng(place).integers(2**63)))
        terms = deep_supervision_loss(all_logits(self.network(batch.image)), batch.labels, background=self.background)
        self.count_step(terms, len(batch.labels), part.counted)
        return terms["total"] * part.weight

    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        """Class indices of a validation case."""
        image = np.asarray(self.validation[number].image)
        return self.predictor.predict_slices(image, self.grids[number].spacing_mm), float("nan")

    def validation_seconds(self) -> float:
        """From a part of the first case that is as large as a patch."""
        grid, spec = self.grids[0], self.predictor.spec
        d, h, w = (
            ceil(side * ours / theirs)
            for side, ours, theirs in zip(spec.patch, spec.spacing_mm, grid.spacing_mm, strict=True)
        )
        image = np.asarray(self.validation[0].image[:d, :, :h, :w])
        self.predictor.predict_slices(image, grid.spacing_mm)  # the first pass is slower than those that follow
        started = time.monotonic()
        self.predictor.predict_slices(image, grid.spacing_mm)
        return (time.monotonic() - started) * sum(self.predictor.num_windows(*grid) for grid in self.grids)

    def configure_optimizers(self) -> Any:
        """What the system's recipe says."""
        optimizer = make_optimizer(self.network, self.recipe)
        steps = self.config.epochs * self.steps_per_epoch
        falling = falling_poly if self.recipe.schedule == "poly" else falling_cosine
        schedule = make_schedule(optimizer, self.config, 0, steps, self.cooldown, falling)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def falling_poly(progress: float) -> float:
    """nnU-Net's: from 1 at progress 0 to 0 at 1."""
    return float((1 - min(1.0, progress)) ** 0.9)


def fit_patches(
    predictor: PatchPredictor,
    *,
    training: Sequence[PatchCase],
    validation: Sequence[GriddedCase],
    config: PatchConfig,
    folder: Path,
    resume: bool,
    distributed: DistributedContext,
) -> FitResult:
    """Train the predictor's network and leave the best weights in it; see `training.fit.fit`."""
    spec = predictor.spec

    def assemble(changed: TrainingConfig) -> tuple[PatchModule, Any]:
        assert isinstance(changed, PatchTrainingConfig)
        dataset = PatchDataset(
            training,
            patch=spec.patch,
            spacing_mm=spec.spacing_mm,
            augmentation=config.augmentation,
            foreground_fraction=changed.foreground_fraction,
            seed=changed.seed,
        )
        loader: Any = epoch_loader(dataset, collate, changed, len(training), distributed)
        division = loader.batch_sampler.division
        return PatchModule(
            predictor, validation=validation, config=changed, division=division, distributed=distributed
        ), loader

    cases = CaseCache(tuple(case.cached for case in validation))
    return fit_module(
        assemble, config.training, validation=cases, folder=folder, resume=resume, distributed=distributed
    )
