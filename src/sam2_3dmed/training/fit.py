"""A training run: what is trained on which data, the minutes it has, the loop, and the best weights at its end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed.config import FeatureCacheConfig, RunConfig, TrainingConfig
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.batch_sharding import shares
from sam2_3dmed.training.checkpoints import best_state, forget_states, newest_whole_state
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.feature_cache import make_feature_cache
from sam2_3dmed.training.loader import slab_loader
from sam2_3dmed.training.loop import TrainingLoop
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.lr_finder import RateTest, find_rate
from sam2_3dmed.training.slab_training import SlabTraining
from sam2_3dmed.training.time_budget import within_minutes
from sam2_3dmed.training.trainable import Trainable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """How a run ended. The network holds the best weights."""

    best_dice: float
    epochs: int
    steps: int


def fit(
    network: SAM2For3dMed,
    predictor: Predictor,
    *,
    training: CaseCache,
    validation: CaseCache,
    config: RunConfig,
    folder: Path,
    resume: bool = False,
    distributed: DistributedContext | None = None,
) -> FitResult:
    """Train a network and leave the best weights in it; curves, logs and checkpoints go below `folder`.

    Args:
        network: what trains.
        predictor: wraps the same network and has the run's slab.
        training: the cases to train on.
        validation: the cases to validate.
        config: the recipe.
        folder: of the run.
        resume: go on from the last checkpoint, as if never interrupted.
        distributed: the processes that train together, each of which calls this; None for this one alone.

    Raises:
        TrainingError: the loss is not finite any more.
        Terminated: SIGTERM came. `resume` goes on from the last checkpoint.
    """
    distributed = distributed or DistributedContext()

    def assemble(changed: TrainingConfig) -> tuple[SlabTraining, Any]:
        recipe = config.model_copy(update={"training": changed})
        return assemble_slabs(network, predictor, training, validation, recipe, folder, distributed)

    return fit_trainable(
        assemble,
        config.training,
        validation=validation,
        folder=folder,
        resume=resume,
        distributed=distributed,
        cache=config.feature_cache,
    )


def fit_trainable(
    assemble: Callable[[TrainingConfig], tuple[Trainable, Any]],
    training: TrainingConfig,
    *,
    validation: CaseCache,
    folder: Path,
    resume: bool,
    distributed: DistributedContext,
    cache: FeatureCacheConfig | None = None,
) -> FitResult:
    """Train any system; see `fit`.

    Args:
        assemble: makes the trainable and the loader of its batches; called again when minutes have become epochs.
        cache: of the features of the trainable, if it has one.
    """
    if not resume and distributed.first:
        forget_states(folder / "checkpoints")
    checkpoint = newest_whole_state(folder / "checkpoints") if resume else None
    if resume and checkpoint is None:
        logger.info("%s: no checkpoint yet, so the run starts anew", folder)
    trainable, loader = assemble(training)
    fabric = distributed.launch()
    if training.minutes is not None:
        training = within_minutes(training, trainable, loader, folder, fabric, resume=resume, cache=cache)
        trainable, loader = assemble(training)
    if trainable.features is not None:
        trainable.features.describe(training)
    cases = shares([case.num_slices for case in validation], distributed.size)[distributed.rank]
    TrainingLoop(trainable, loader, cases, training, folder, fabric).run(checkpoint)
    if trainable.features is not None:
        trainable.features.close()
    best = best_state(folder / "checkpoints")
    trainable.cpu().load_state_dict(best["state_dict"])
    return FitResult(best["best_score"], trainable.progress.epoch, trainable.progress.step)


def try_rates(
    network: SAM2For3dMed, predictor: Predictor, *, training: CaseCache, config: RunConfig, folder: Path
) -> RateTest:
    """How the loss answers to learning rates, from the network's weights, which stay as they are.

    folder: for the feature cache, if there is one.
    """
    distributed = DistributedContext()
    trainable, loader = assemble_slabs(network, predictor, training, CaseCache(()), config, folder, distributed)
    return find_rate(trainable, loader, config.training, distributed.launch())


def assemble_slabs(
    network: SAM2For3dMed,
    predictor: Predictor,
    training: CaseCache,
    validation: CaseCache,
    config: RunConfig,
    folder: Path,
    distributed: DistributedContext,
) -> tuple[SlabTraining, Any]:
    """What trains, and the loader of its batches; see `fit` for the arguments."""
    network.save_memory(
        activation_checkpointing=config.training.activation_checkpointing, slices_at_once=config.training.encoder_slices
    )
    loader: Any = slab_loader(
        training,
        config,
        slab_slices=predictor.slab_slices,
        image_size=network.encoder.image_size,
        distributed=distributed,
    )
    trainable = SlabTraining(
        network,
        loss=TotalLoss(config.loss),
        predictor=predictor,
        validation=list(validation),
        config=config.training,
        division=loader.batch_sampler.division,
        distributed=distributed,
        features=make_feature_cache(network.encoder, loader.dataset, config, folder / "features"),
    )
    return trainable, loader
