"""A training run: the data a plan prepares, the trainer that a recipe asks for, and the best weights at its end."""

import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.loader import case_loader, window_loader
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.module import MONITORED, TrainingModule
from sam2_3dmed.training.trainer import BEST_CHECKPOINT, LAST_CHECKPOINT, make_trainer, quiet_lightning

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
) -> FitResult:
    """Train a network and leave the best weights in it; curves, logs and checkpoints go below `folder`.

    predictor: wraps the same network and has the run's window. resume: go on from the last checkpoint, as if never
    interrupted.

    Raises:
        KeyboardInterrupt: the user stopped it; `resume` goes on from the last whole epoch.
    """
    checkpoint = folder / "checkpoints" / LAST_CHECKPOINT
    if resume and not checkpoint.exists():
        logger.info("%s: no checkpoint yet, so the run starts anew", checkpoint)
        resume = False
    loader = window_loader(
        training,
        config,
        window_slices=predictor.passes.window_slices,
        image_size=network.encoder.image_size,
    )
    module = TrainingModule(
        network,
        loss=_loss(config),
        predictor=predictor,
        validation=list(validation),
        config=config.training,
        steps_per_epoch=len(loader),
    )
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor=MONITORED, mode="max", enable_version_counter=False)
    cases = case_loader(len(validation))
    with quiet_lightning():
        trainer = make_trainer(config, folder, best, len(loader))
        _fit(trainer, module, loader, cases, checkpoint if resume else None)
        epochs, steps = trainer.current_epoch, trainer.global_step
        last_score = None if module.validated_step == steps else _validate(trainer, module, cases)
    best_score = -1.0 if best.best_model_score is None else float(best.best_model_score)
    if last_score is not None and last_score > best_score:
        return FitResult(last_score, epochs, steps)
    state = torch.load(folder / "checkpoints" / BEST_CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    return FitResult(best_score, epochs, steps)


def _fit(trainer: lightning.Trainer, module: TrainingModule, loader: Any, cases: Any, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, loader, cases, ckpt_path=checkpoint)
    except SystemExit:  # Lightning's answer to Ctrl-C, after which it ignores the next one
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _validate(trainer: lightning.Trainer, module: TrainingModule, cases: Any) -> float:
    """The score of the weights as they are: the last epochs may lie beyond the last regular validation."""
    (metrics,) = trainer.validate(module, cases, verbose=False)
    return float(metrics[MONITORED])


def _loss(config: RunConfig) -> TotalLoss:
    return TotalLoss(
        segmentation=config.loss.segmentation,
        lambda_srpp=config.loss.lambda_srpp,
        lambda_boundary=config.loss.lambda_boundary,
        boundary_normalise=config.loss.boundary_normalise,
    )
