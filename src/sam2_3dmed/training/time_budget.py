"""As many steps as fit into minutes: measured once, written down, and from then on as fixed as any other number."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sam2_3dmed.config import FeatureCacheConfig, TrainingConfig
from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.training.diagnostics import GradientNorms
from sam2_3dmed.training.distributed import gather
from sam2_3dmed.training.run_module import RunModule
from sam2_3dmed.training.timing_run import Stopwatch, try_steps

SCHEDULE_FILE = "schedule.json"
_MARGIN = 0.03
"""Of the minutes, for checkpoints, pictures, and what else is not measured."""
_MEASURED_SHARE = 0.02
"""Of the minutes that each measurement may take, if that is enough for three batches."""
_MOST_BATCHES = 20
_FEWEST_EPOCHS = 20
"""An epoch is cut short before there are fewer, if the recipe has that many: it has to validate now and then."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Costs:
    """Seconds of a batch of single slices, of a batch of slabs, of a validation, and what measuring took.

    first_time: what a batch costs more as long as its features are not in the feature cache; first_times: of how many
    batches that is true until all views are there; refresh: after how many epochs it is so again, none for never.
    """

    single_slices: float
    slabs: float
    validation: float
    spent: float
    first_time: float = 0.0
    first_times: float = 0.0
    refresh: int | None = None


@dataclass(frozen=True)
class Schedule:
    """What minutes came to: epochs, and batches in each."""

    epochs: int
    batches: int


def fitting_schedule(training: TrainingConfig, batches: int, costs: Costs) -> Schedule:
    """The longest run that ends within `training.minutes`; at least a batch an epoch.

    batches: of an epoch as the recipe has it, which is kept but for rounding unless too few epochs would fit.
    """
    epochs = _most_epochs(training, min(training.epochs, _FEWEST_EPOCHS), batches, costs)
    batches = max(1, int(_batches_that_fit(training, epochs, costs)))
    return Schedule(_most_epochs(training, epochs, batches, costs), batches)


def _most_epochs(training: TrainingConfig, epochs: int, batches: int, costs: Costs) -> int:
    """How many of so many batches fit, but not fewer than `epochs`."""
    more = 1
    while _batches_that_fit(training, epochs + more, costs) >= batches:
        epochs, more = epochs + more, 2 * more
    while more := more // 2:
        if _batches_that_fit(training, epochs + more, costs) >= batches:
            epochs += more
    return epochs


def _batches_that_fit(training: TrainingConfig, epochs: int, costs: Costs) -> float:
    """In each of so many epochs."""
    assert training.minutes is not None
    single = int(training.single_slice_fraction * epochs)
    validations = math.ceil(epochs / min(training.validate_every, epochs))
    seconds = 60 * training.minutes * (1 - _MARGIN) - costs.spent - validations * costs.validation
    each = single * costs.single_slices + (epochs - single) * costs.slabs
    first_times = costs.first_times * (math.ceil(epochs / costs.refresh) if costs.refresh else 1)
    count = (seconds - first_times * costs.first_time) / each
    return count if count * epochs >= first_times else seconds / (each + epochs * costs.first_time)


def within_minutes(
    training: TrainingConfig,
    module: RunModule,
    loader: Any,
    folder: Path,
    *,
    resume: bool,
    cache: FeatureCacheConfig | None = None,
) -> TrainingConfig:
    """Training with as many epochs and slabs as fit into its minutes.

    That is measured, with a few batches of each kind and part of a volume, and written into `folder`; for a run that is
    resumed, what is written there holds. cache: of the features of `module`, if it has one.
    """
    path = folder / SCHEDULE_FILE
    schedule = read_schedule(path) if resume else None
    if schedule is None:
        costs = _measure(training, module, loader, cache)
        schedule = gather(fitting_schedule(training, len(loader), costs))[0]  # the first process's, for all
        if module.distributed.first:
            write_text(path, json.dumps(asdict(schedule) | {"seconds": asdict(costs)}, indent=2) + "\n")
    logger.info("%g minutes: %d epochs of %d batches", training.minutes, schedule.epochs, schedule.batches)
    slabs = loader.batch_sampler.division.samples_per_epoch
    changes = {"epochs": schedule.epochs, "samples_per_epoch": max(1, slabs * schedule.batches // len(loader))}
    return training.model_copy(update=changes)


def read_schedule(path: Path) -> Schedule | None:
    """What was written; None if nothing was.

    Raises:
        DataError: a broken file.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Schedule(int(content["epochs"]), int(content["batches"]))
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f'{path}: expected {{"epochs": N, "batches": N, ...}}') from None


def _measure(training: TrainingConfig, module: RunModule, loader: Any, cache: FeatureCacheConfig | None) -> Costs:
    assert training.minutes is not None
    started = time.monotonic()
    limit = 60 * training.minutes * _MEASURED_SHARE
    validation = _ValidationWatch()

    def batches(*kinds: bool) -> list[float]:
        """Seconds of one of each kind, and of a validation."""
        watch = Stopwatch(kinds, limit, _MOST_BATCHES)
        try_steps(module, loader, training, [GradientNorms(), watch, validation], -1)
        return watch.seconds

    # The same slabs are drawn each time, so their features are in the cache at the second.
    first = None if module.features is None else batches(False)[0]
    slabs, *single_slices = batches(*([False, True] if module.single_slice_steps else [False]))
    return Costs(
        single_slices=single_slices[0] if single_slices else slabs,
        slabs=slabs,
        validation=validation.seconds,
        spent=time.monotonic() - started,
        first_time=0.0 if first is None else max(0.0, first - slabs),
        first_times=0.0 if first is None or cache is None else _batches_of_all_views(cache, loader),
        refresh=None if cache is None else cache.refresh,
    )


def _batches_of_all_views(cache: FeatureCacheConfig, loader: Any) -> float:
    """How many batches have as many slices as all views of all cases."""
    slices = sum(case.num_slices for case in loader.dataset.cases) * cache.views
    slabs = loader.batch_sampler.division.samples_per_epoch / len(loader)
    return float(slices / (slabs * loader.dataset.slab_slices))


class _ValidationWatch(Callback):
    """Seconds of a validation of all cases, from a part of the first one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict, while everything is where it is in training."""
        assert isinstance(pl_module, RunModule)
        seconds = pl_module.validation_seconds()
        pl_module.network.train()
        self.seconds = trainer.strategy.broadcast(seconds / trainer.world_size)
