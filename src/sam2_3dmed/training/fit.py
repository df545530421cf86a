"""A training run: what is trained on which data, the minutes it has, the loop, and the best weights at its end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.training.checkpoints import best_state, forget_states, newest_whole_state
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.loader import shares
from sam2_3dmed.training.loop import TrainingLoop
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
    assemble: Callable[[TrainingConfig], Trainable],
    training: TrainingConfig,
    folder: Path,
    distributed: DistributedContext,
    *,
    resume: bool,
) -> FitResult:
    """Train a network and leave the best weights in it; curves, logs and checkpoints go below `folder`.

    Args:
        assemble: makes the trainable; called again when minutes have become epochs.
        distributed: the processes that train together, each of which calls this.
        resume: go on from the last checkpoint, as if never interrupted.

    Raises:
        TrainingError: the loss is not finite any more.
        Terminated: SIGTERM came. `resume` goes on from the last checkpoint.
    """
    checkpoints = folder / "checkpoints"
    if not resume and distributed.first:
        forget_states(checkpoints)
    checkpoint = newest_whole_state(checkpoints) if resume else None
    if resume and checkpoint is None:
        logger.info("%s: no checkpoint yet, so the run starts anew", folder)
    trainable = assemble(training)
    fabric = distributed.launch()
    if training.minutes is not None:
        trainable = assemble(within_minutes(trainable, folder, fabric, resume=resume))
    features = trainable.features
    if features is not None:
        features.describe(trainable.config)
    sizes = [case.num_slices for case in trainable.validation]
    cases = shares(sizes, distributed.size)[distributed.rank]
    TrainingLoop(trainable, cases, folder, fabric).run(checkpoint)
    if features is not None:
        features.close()
    best = best_state(checkpoints)
    trainable.cpu().load_state_dict(best["state_dict"])
    return FitResult(best["best_score"], trainable.progress.epoch, trainable.progress.step)
