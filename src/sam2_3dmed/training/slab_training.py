"""How SAM2-3dMed trains: the step on slabs, the optimiser, and the validation of volumes by the real predictor."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import SlabDataset, Slabs, ViewDataset, ViewSlabs, collate
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.inference.slabs import Slab
from sam2_3dmed.model.network import Prediction, SAM2For3dMed
from sam2_3dmed.model.prompts import Prompts, boxes_from_labels
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.loader import Part, epoch_loader
from sam2_3dmed.training.losses import TotalLoss, reference_masks
from sam2_3dmed.training.losses.relative_position import position_error, relative_positions
from sam2_3dmed.training.prompted_slabs import PromptedDataset, PromptedSlabs
from sam2_3dmed.training.prompted_slabs import collate as collate_prompted
from sam2_3dmed.training.trainable import Trainable
from sam2_3dmed.volume.label_scheme import LabelScheme

TEACHER_FROM = 0.1
"""The share of the steps after which the average of the weights teaches."""


def training_step(
    network: SAM2For3dMed,
    loss: TotalLoss,
    batch: Sequence[Slabs] | Sequence[ViewSlabs] | Sequence[PromptedSlabs],
    classes: int | LabelScheme,
    *,
    single_slices: bool = False,
    features: FeatureCache | None = None,
    on_position_error: Callable[[Tensor, int], None] | None = None,
    teach: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The total loss and its terms over a batch, of which every slab weighs the same. The caller computes gradients.

    Args:
        batch: groups of slabs of equal length.
        classes: K, or what the slabs' labels mean (`LabelScheme.indexed`).
        single_slices: every slice becomes a slab of its own.
        features: gives the features of slabs of views.
        teach: gives a teacher's logits (B, K, D, h, w) for weak views (B, D, C, H, W).
        on_position_error: called for each group of slabs with SRPP's mean error in slices, and the number of slabs.
    """
    scheme = LabelScheme.numbered(classes) if isinstance(classes, int) else classes
    total = sum(len(slabs.labels) for slabs in batch)
    shares = [len(slabs.labels) / total for slabs in batch]
    losses = []
    for slabs in batch:
        if single_slices and not isinstance(slabs, PromptedSlabs):
            slabs = slabs.single_slices()
        masks, annotated = reference_masks(slabs.labels, scheme)
        prompts = _prompts(network, slabs, len(scheme))
        if isinstance(slabs, ViewSlabs):
            assert features is not None
            prediction = network.decode(features(slabs), prompts, pre_fpn=True)
        else:
            prediction = network(slabs.slices, prompts)
        weak = slabs.weak if isinstance(slabs, Slabs) else None
        teacher = teach(weak) if teach and weak is not None else None
        losses.append(loss(prediction, masks, slabs.positions, annotated, teacher))
        predicted = prediction.relative_position
        if on_position_error is not None and predicted is not None and slabs.positions.shape[1] > 1:
            error = position_error(predicted.detach(), relative_positions(slabs.positions))
            on_position_error(error, len(slabs.labels))

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum()

    return {name: mean([group[name] for group in losses]) for name in losses[0]}


def _prompts(network: SAM2For3dMed, slabs: Slabs | ViewSlabs | PromptedSlabs, num_classes: int) -> Prompts | None:
    """The prompts of slabs: their own, or boxes that are drawn around their labels."""
    if isinstance(slabs, PromptedSlabs):
        return slabs.prompts
    if not network.box_every:
        return None
    return boxes_from_labels(slabs.labels, range(1, num_classes + 1), slabs.positions, network.box_every)


class SlabTraining(Trainable):
    """Trains a predictor's network on slabs. features: gives the features of slabs of views."""

    predictor: Predictor
    network: SAM2For3dMed

    def __init__(
        self,
        predictor: Predictor,
        loader: Any,
        *,
        validation: Sequence[CachedCase],
        config: RunConfig,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__(predictor, loader, validation=validation, config=config.training)
        self.loss = TotalLoss(config.loss)
        self.features = features
        self.has_teacher = config.loss.has_teacher
        self.single_slice_steps = self.config.single_slice_epochs * self.division.steps
        self.encoder_layers = self.network.encoder.vision_encoder.layers()

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

    def losses(
        self, batch: Sequence[Slabs] | Sequence[ViewSlabs] | Sequence[PromptedSlabs], part: Part
    ) -> Mapping[str, Tensor]:
        """See `Trainable`; batch: groups of slabs of equal length."""

        def count_error(error: Tensor, num_slabs: int) -> None:
            self.means.add("position_error/training", error, num_slabs if part.counted else 0)

        self.network.draw = self.progress.step
        return training_step(
            self.network,
            self.loss,
            batch,
            self.scheme,
            single_slices=self.sees_single_slices,
            features=self.features,
            on_position_error=count_error,
            teach=self._teach if self._is_taught else None,
        )

    @property
    def _is_taught(self) -> bool:
        """Whether there is a teacher, and it has learnt a little itself."""
        steps = self.config.epochs * self.division.steps
        return self.teacher is not None and self.progress.step >= TEACHER_FROM * steps

    @torch.no_grad()
    def _teach(self, weak: Tensor) -> Tensor:
        assert self.teacher is not None
        weights = {name.removeprefix("network."): weight for name, weight in self.teacher.weights.items()}
        prediction: Prediction = torch.func.functional_call(self.network, weights, (weak,))
        return prediction.segmentation

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


def assemble_pretraining(
    predictor: Predictor, validation: Sequence[CachedCase], config: RunConfig, distributed: DistributedContext
) -> SlabTraining:
    """A predictor's promptable network with slabs of made-up anatomy."""
    network, recipe = predictor.network, config.training
    network.save_memory(activation_checkpointing=recipe.activation_checkpointing, slices_at_once=recipe.encoder_slices)
    dataset = PromptedDataset(predictor.slab_slices, network.encoder.image_size, recipe.batch_size, recipe.seed)
    loader = epoch_loader(dataset, collate_prompted, recipe, recipe.batch_size, distributed)
    return SlabTraining(predictor, loader, validation=validation, config=config)


def assemble_slabs(
    predictor: Predictor,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    config: RunConfig,
    folder: Path,
    distributed: DistributedContext,
    unlabelled: Sequence[CachedCase] = (),
) -> SlabTraining:
    """A predictor's network with augmented slabs, drawn anew for every epoch; with a feature cache, slabs of views.

    folder: of the run.

    unlabelled: cases without labels, of which slabs are drawn, too.

    Raises: ConfigError for a feature cache with an encoder that trains.
    """
    network, recipe, cache = predictor.network, config.training, config.feature_cache
    network.save_memory(activation_checkpointing=recipe.activation_checkpointing, slices_at_once=recipe.encoder_slices)
    slabs = SlabDataset(
        training,
        slab_slices=predictor.slab_slices,
        augmentation=SlabAugmentation(config.augmentation, network.encoder.image_size),
        foreground_fraction=recipe.foreground_fraction,
        seed=recipe.seed,
        single_slice_epochs=recipe.single_slice_epochs,
        unlabelled=unlabelled,
        unlabelled_fraction=recipe.unlabelled_fraction,
        weak_views=config.loss.has_teacher,
    )
    dataset: SlabDataset | ViewDataset = slabs
    features = None
    if cache.views > 0:
        dataset = ViewDataset(slabs, num_views=cache.views, refresh=cache.refresh)
        features = FeatureCache(network.encoder, dataset, cache, folder / "features")
    loader = epoch_loader(dataset, collate, recipe, len(training), distributed)
    return SlabTraining(predictor, loader, validation=validation, config=config, features=features)
