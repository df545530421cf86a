"""Training runs of patch-based systems: how one starts, trains and is saved."""

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.baselines.cache import GriddedCase, build_patch_cache, with_grids
from sam2_3dmed.baselines.networks import all_logits, build, intensities, outline, plan_network
from sam2_3dmed.baselines.patches import PatchDataset, Patches, collate
from sam2_3dmed.baselines.predictor import PatchPredictor
from sam2_3dmed.baselines.recipe import PatchConfig, PatchRecord, PatchSpec, PatchTrainingConfig
from sam2_3dmed.config import Plan, changed
from sam2_3dmed.run.run_folder import save_model
from sam2_3dmed.run.systems import Preparation, TrainingRun
from sam2_3dmed.training.distributed import seed_all
from sam2_3dmed.training.loader import Part, epoch_loader
from sam2_3dmed.training.loop import FitResult, fit
from sam2_3dmed.training.losses import CERTAIN_BACKGROUND, mean_of_annotated, reference_masks
from sam2_3dmed.training.losses.segmentation import bce, dice_loss, soft_dice
from sam2_3dmed.training.optimizer import falling_cosine
from sam2_3dmed.training.trainable import Trainable
from sam2_3dmed.volume.label_scheme import LabelScheme

logger = logging.getLogger(__name__)


class PatchTraining(Trainable):
    """Trains a network on patches and validates it on volumes with the real predictor, which wraps the network."""

    predictor: PatchPredictor

    def __init__(
        self, predictor: PatchPredictor, loader: Any, *, validation: Sequence[GriddedCase], config: PatchTrainingConfig
    ) -> None:
        super().__init__(predictor, loader, validation=[case.cached for case in validation], config=config)
        self.grids = [case.grid for case in validation]
        self.falling = falling_poly if config.schedule == "poly" else falling_cosine

    def parts(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def losses(self, batch: Patches, part: Part) -> Mapping[str, Tensor]:
        # What a network leaves out at random depends on the place in the run alone, so a resumed run does the same.
        place = [self.config.seed, self.progress.epoch, self.progress.passes, self.division.rank]
        torch.manual_seed(int(np.random.default_rng(place).integers(2**63)))
        logits = all_logits(self.network(batch.image))
        return deep_supervision_loss(logits, batch.labels, self.scheme, background=self.predictor.spec.has_background)

    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
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


def deep_supervision_loss(
    outputs: Sequence[Tensor], labels: Tensor, scheme: LabelScheme, *, background: bool
) -> dict[str, Tensor]:
    """`total`: the mean over sizes, each with half the weight of the next finer one; `segmentation`: of the finest.

    outputs: logits (B, K or K + 1, d, h, w), the finest first, of any sizes. labels: (B, D, H, W).
    scheme: what the labels mean (`LabelScheme.indexed`). background: as `PatchSpec.has_background`.
    """
    loss = dice_cross_entropy if background else dice_sigmoid
    losses = [loss(logits.float(), _labels_like(labels, logits), scheme) for logits in outputs]
    weights = torch.tensor([2.0**-level for level in range(len(losses))], device=labels.device)
    total = (torch.stack(losses) * weights / weights.sum()).sum()
    return {"total": total, "segmentation": losses[0]}


def dice_cross_entropy(logits: Tensor, labels: Tensor, scheme: LabelScheme) -> Tensor:
    """nnU-Net's: 1 - soft Dice of the classes without the background, plus cross entropy over all.

    logits: (B, K + 1, D, H, W); labels: (B, D, H, W). Voxels to be ignored count in neither.
    """
    masks, annotated = reference_masks(labels, scheme)
    probabilities = logits.softmax(dim=1)[:, 1:]
    if annotated is not None:
        probabilities, labels = probabilities * annotated, labels * annotated.squeeze(1)
    cross_entropy = F.cross_entropy(logits, labels.long(), reduction="none").unsqueeze(1)
    return 1 - soft_dice(probabilities, masks).mean() + mean_of_annotated(cross_entropy, annotated)


def dice_sigmoid(logits: Tensor, labels: Tensor, scheme: LabelScheme) -> Tensor:
    """The Universal model's, and nnU-Net's of regions: soft Dice plus binary cross entropy of each class on its own.

    logits: (B, K, D, H, W); labels: (B, D, H, W). Voxels to be ignored count in neither.
    """
    masks, annotated = reference_masks(labels, scheme)
    known = logits if annotated is None else logits.masked_fill(~annotated, CERTAIN_BACKGROUND)
    return dice_loss(known, masks) + bce(known, masks, annotated)


def _labels_like(labels: Tensor, logits: Tensor) -> Tensor:
    if labels.shape[1:] == logits.shape[2:]:
        return labels
    resized = F.interpolate(labels.unsqueeze(1).float(), logits.shape[2:], mode="nearest-exact")
    return resized.squeeze(1).to(labels.dtype)


def falling_poly(progress: float) -> float:
    """nnU-Net's schedule: from 1 at progress 0 to 0 at 1."""
    return float((1 - min(1.0, progress)) ** 0.9)


class PatchRun(TrainingRun):
    """A network with the cases that it learns from, on the common grid, and those that it is validated on."""

    record: PatchRecord

    def __init__(self, preparation: Preparation) -> None:
        recipe: PatchConfig = preparation.recipe
        plan = preparation.plan
        cases, self.validation = (
            with_grids(part, preparation.dataset, plan.slicing_axis) for part in preparation.cases()
        )
        self.record = cast(PatchRecord | None, preparation.resumed) or PatchRecord(
            system=recipe.system,
            model=plan_spec(recipe, plan, cases),
            plan=plan,
            recipe=recipe,
            weights="none",
            versions={name: version(name) for name in ("sam2-3dmed", "torch", "monai")},
        )
        logger.info("model: %s", self.record.about)
        seed_all(recipe.training.seed)
        network = first_network(self.record.model, recipe, plan)
        with preparation.progress("Resampling cases") as bar:
            self.training = build_patch_cache(
                cases, self.record.model, plan.scheme.indexed, preparation.cache_folder, bar
            )
        config = changed(recipe.inference, {"precision": recipe.training.precision}, "inference")
        self.predictor = PatchPredictor(network, self.record.model, plan, config)
        self.folder, self.distributed = preparation.folder, preparation.distributed

    def fit(self, *, resume: bool) -> FitResult:
        return fit(self._assemble, self.record.recipe.training, self.folder, self.distributed, resume=resume)

    def _assemble(self, config: Any) -> PatchTraining:
        """The network with its patches. config: the recipe's, perhaps with epochs for minutes."""
        dataset = PatchDataset(
            self.training,
            self.record.model,
            self.record.recipe.augmentation,
            foreground_fraction=config.foreground_fraction,
            seed=config.seed,
        )
        loader = epoch_loader(dataset, collate, config, len(self.training), self.distributed)
        return PatchTraining(self.predictor, loader, validation=self.validation, config=config)

    def save(self) -> None:
        save_model(self.predictor.network, self.record, self.folder)


def plan_spec(config: PatchConfig, plan: Plan, cases: Sequence[GriddedCase]) -> PatchSpec:
    """The network and its input, as the training cases decide."""
    outlined = outline(
        config,
        [case.grid for case in cases],
        num_channels=len(plan.channels),
        num_classes=plan.num_classes,
        on_gpu=torch.cuda.is_available(),
        regions=bool(plan.regions),
    )
    patch, arguments = plan_network(config, outlined)
    kinds = [channel.normalisation for channel in plan.channels]
    foreground = plan.scheme.indexed.file_values
    pairs = ((np.asarray(case.cached.image), np.isin(case.cached.label, foreground)) for case in cases)
    return PatchSpec(
        system=config.system,
        size=outlined.size,
        spacing_mm=outlined.spacing_mm,
        patch=patch,
        intensities=tuple(intensities(kinds, pairs)),
        num_classes=plan.num_classes,
        regions=bool(plan.regions),
        network=arguments,
        text=config.names,
    )


def first_network(spec: PatchSpec, config: PatchConfig, plan: Plan) -> nn.Module:
    """The network with its first weights; the names of the classes are embedded by the CLIP model at `model.text`."""
    network = build(spec)
    if config.model.text is not None:
        from sam2_3dmed.baselines.universal import Universal, embed_names

        assert isinstance(network, Universal)
        network.head.text = embed_names(Path(config.model.text), list(plan.labels.values()))
    return network
