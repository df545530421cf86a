"""A training run: the data a plan prepares, the trainer that a recipe asks for, and the best weights at its end."""

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning

from sam2_3dmed.config import FeatureCacheConfig, RunConfig, TrainingConfig
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.processes.signals import Terminated
from sam2_3dmed.training.checkpoints import Checkpoints, best_state, forget_states, newest_whole_state, step_of
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.feature_cache import make_feature_cache
from sam2_3dmed.training.loader import case_loader, slab_loader
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.lr_finder import RateTest, find_rate
from sam2_3dmed.training.module import TrainingModule
from sam2_3dmed.training.run_module import RunModule
from sam2_3dmed.training.time_budget import within_minutes
from sam2_3dmed.training.trainer import make_trainer, quiet_lightning

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

    predictor: wraps the same network and has the run's slab. resume: go on from the last checkpoint, as if never
    interrupted. distributed: the processes that train together, each of which calls this; none: this one alone.

    Raises:
        TrainingError: the loss is not finite any more. Terminated: SIGTERM came. KeyboardInterrupt: the user stopped
            it. `resume` goes on from the last checkpoint.
    """
    distributed = distributed or DistributedContext()

    def assemble(changed: TrainingConfig) -> tuple[TrainingModule, Any]:
        recipe = config.model_copy(update={"training": changed})
        return _assemble(network, predictor, training, validation, recipe, folder, distributed)

    return fit_module(
        assemble,
        config.training,
        validation=validation,
        folder=folder,
        resume=resume,
        distributed=distributed,
        cache=config.feature_cache,
    )


def fit_module(
    assemble: Callable[[TrainingConfig], tuple[RunModule, Any]],
    training: TrainingConfig,
    *,
    validation: CaseCache,
    folder: Path,
    resume: bool,
    distributed: DistributedContext,
    cache: FeatureCacheConfig | None = None,
) -> FitResult:
    """As `fit`, of whatever is assembled.

    assemble: makes the module and the loader of what it trains on, whose batch sampler can be placed anywhere in a run;
    called a second time when minutes have become epochs. cache: of the module's features, if it has one.
    """
    if not resume and distributed.first:
        forget_states(folder / "checkpoints")
    checkpoint = newest_whole_state(folder / "checkpoints") if resume else None
    if resume and checkpoint is None:
        logger.info("%s: no checkpoint yet, so the run starts anew", folder)
    with quiet_lightning():
        module, loader = assemble(training)
        if training.minutes is not None:
            training = within_minutes(training, module, loader, folder, resume=resume, cache=cache)
            module, loader = assemble(training)
        if module.features is not None:
            module.features.describe(training)
        trainer = make_trainer(training, folder, loader, step_of(checkpoint) if checkpoint else None, distributed)
        _fit(trainer, module, loader, case_loader(validation, distributed), checkpoint)
        if module.features is not None:
            module.features.close()
    best = best_state(folder / "checkpoints")
    module.load_state_dict(best["state_dict"])
    return FitResult(best["callbacks"][Checkpoints.__name__]["best_score"], trainer.current_epoch, trainer.global_step)


def try_rates(
    network: SAM2For3dMed, predictor: Predictor, *, training: CaseCache, config: RunConfig, folder: Path
) -> RateTest:
    """How the loss answers to learning rates, from the network's weights, which stay as they are.

    folder: for the feature cache, if there is one.
    """
    with quiet_lightning():
        module, loader = _assemble(network, predictor, training, CaseCache(()), config, folder, DistributedContext())
        return find_rate(module, loader, config)


def _assemble(
    network: SAM2For3dMed,
    predictor: Predictor,
    training: CaseCache,
    validation: CaseCache,
    config: RunConfig,
    folder: Path,
    distributed: DistributedContext,
) -> tuple[TrainingModule, Any]:
    """What is trained, and the loader of what it is trained on."""
    network.save_memory(
        checkpointing=config.training.activation_checkpointing, slices_at_once=config.training.encoder_slices
    )
    loader: Any = slab_loader(
        training,
        config,
        slab_slices=predictor.slab_slices,
        image_size=network.encoder.image_size,
        distributed=distributed,
    )
    module = TrainingModule(
        network,
        loss=TotalLoss(config.loss),
        predictor=predictor,
        validation=list(validation),
        config=config.training,
        division=loader.batch_sampler.division,
        distributed=distributed,
        features=make_feature_cache(network.encoder, loader.dataset, config, folder / "features"),
    )
    return module, loader


def _fit(trainer: lightning.Trainer, module: RunModule, loader: Any, cases: Any, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, loader, cases, ckpt_path=checkpoint)
    except SystemExit:  # Lightning's answer to Ctrl-C, after which it ignores the next one
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # the loader's: SIGTERM may reach its workers, too
        if not any(isinstance(c, Checkpoints) and c.terminating for c in trainer.callbacks):
            raise
        raise Terminated from error
