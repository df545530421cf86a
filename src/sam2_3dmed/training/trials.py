"""Training that leaves no trace. It finds the learning rate to begin with, or as many epochs as fit into minutes."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning.fabric import Fabric

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.errors import DataError, TrainingError
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import replacing, write_csv, write_text
from sam2_3dmed.training.optimizer import EMA, trained_weights
from sam2_3dmed.training.trainable import Learner, Progress, Trainable, check_gradients

_LOWEST, _HIGHEST = 1e-7, 1.0
_STEPS = 100
_SMOOTHING = 0.9
_DIVERGED = 4.0
"""The smoothed loss, in multiples of its lowest value, at which the test ends."""
SCHEDULE_FILE = "schedule.json"
"""The epochs of a run within minutes: measured once at the start; a resumed run reads them."""
_MARGIN = 0.03
"""Of the minutes, for checkpoints, pictures, and what else is not measured."""
_MEASURED_SHARE = 0.02
"""Of the minutes that each measurement may take, if that is enough for three batches."""
_MOST_BATCHES = 20
_FEWEST_EPOCHS = 20
"""An epoch is cut short before there are fewer, if the recipe has that many: it has to validate now and then."""

logger = logging.getLogger(__name__)


@contextmanager
def trial(trainable: Trainable, fabric: Fabric, before_step: Callable[[Learner], None]) -> Iterator[Iterator[None]]:
    """Training from the first slabs on, an endless iterator of passes; the weights are put back at the end."""
    before = trained_weights(trainable)
    try:
        yield _passes(Learner(trainable, fabric, before_step))
    finally:
        trainable.load_state_dict(before, strict=False)
        trainable.zero_grad()
        trainable.progress = Progress()
        trainable.means.clear()


def _passes(learner: Learner) -> Iterator[None]:
    trainable, progress = learner.trainable, learner.trainable.progress
    while True:
        trainable.division.move_to(progress.epoch)
        for batch in trainable.loader:
            learner.take_pass(batch)
            yield
        progress.epoch += 1
        progress.passes = 0


@dataclass(frozen=True)
class RateTest:
    """The rates of a test's steps, and the losses before them, as they were and smoothed."""

    rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest; a TrainingError if the loss never fell.

        The rate of the steepest fall, which is also in use, is far too low here: see docs/notes/scratch_preset.md.
        """
        lowest = min(range(len(self.rates)), key=self.smoothed.__getitem__)
        if self.smoothed[lowest] >= self.smoothed[0]:
            raise TrainingError("the loss falls at no learning rate, so none is suggested; learning_rates.csv has all")
        return self.rates[lowest] / 10

    def write(self, folder: Path) -> None:
        """Write learning_rates.csv and learning_rates.png."""
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        names = ("learning_rate", "loss", "smoothed")
        write_csv(folder / "learning_rates.csv", [dict(zip(names, row, strict=True)) for row in rows])
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="0.7", markersize=4, label="loss")
        axes.plot(self.rates, self.smoothed, color="#0072B2", label="smoothed")
        axes.axvline(self.suggestion, color="#D55E00", linestyle="--", label=f"suggestion {self.suggestion:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(0, 1.5 * self.losses[0]))
        axes.legend()
        with replacing(folder / "learning_rates.png") as file:
            figure.savefig(file, format="png", dpi=110)


def find_rate(trainable: Trainable, fabric: Fabric) -> RateTest:
    """Try a hundred rates, a step each, until the loss explodes; the weights are put back then."""
    rates: list[float] = []
    losses: list[float] = []
    exploded = False

    def set_rate(learner: Learner) -> None:
        """Set the rate of the coming step, and note the loss before it. The parts keep the ratios of their rates."""
        nonlocal exploded
        loss = fabric.broadcast(float(trainable.latest["total"]))
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (len(rates) / (_STEPS - 1))
        for group in learner.optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"] / trainable.config.learning_rate
        if math.isfinite(loss):
            rates.append(rate)
            losses.append(loss)
        smoothed = smooth(losses)
        exploded = not math.isfinite(loss) or smoothed[-1] > _DIVERGED * min(smoothed)

    with trial(trainable, fabric, set_rate) as passes:
        while not exploded and len(rates) < _STEPS:
            next(passes)
    return RateTest(rates, losses, smooth(losses))


def smooth(values: Sequence[float]) -> list[float]:
    """The running mean in which each value before counts a tenth less than the next, without the pull of the start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = _SMOOTHING * total + value, _SMOOTHING * weight + 1
        smoothed.append(total / weight)
    return smoothed


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a run."""

    single_slices: float
    """Of a batch of single slices."""
    slabs: float
    """Of a batch of slabs."""
    validation: float
    spent: float
    """On measuring."""
    first_time: float = 0.0
    """More for a batch whose features are not in the feature cache yet."""
    first_times: float = 0.0
    """The number of such batches until all views are there."""
    refresh: int | None = None
    """Epochs after which they come again; None for never."""


@dataclass(frozen=True)
class Schedule:
    """The epochs of a run, and the batches of each."""

    epochs: int
    batches: int


def fitting_schedule(training: TrainingConfig, batches: int, costs: Costs) -> Schedule:
    """The longest run that ends within `training.minutes`; at least a batch an epoch.

    The batches of an epoch of the recipe are kept but for rounding, unless fewer than 20 epochs would fit.
    """
    epochs = _most_epochs(training, min(training.epochs, _FEWEST_EPOCHS), batches, costs)
    batches = max(1, int(_batches_that_fit(training, epochs, costs)))
    return Schedule(_most_epochs(training, epochs, batches, costs), batches)


def _most_epochs(training: TrainingConfig, epochs: int, batches: int, costs: Costs) -> int:
    """How many of so many batches fit, but not fewer than `epochs`."""
    while _batches_that_fit(training, epochs + 1, costs) >= batches:
        epochs += 1
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


def within_minutes(trainable: Trainable, folder: Path, fabric: Fabric, *, resume: bool) -> TrainingConfig:
    """The recipe of a trainable with as many epochs and slabs as fit into its minutes.

    This is measured with a few batches of each kind and a part of a volume, and written into `folder`. A run that is
    resumed keeps to what is written there.
    """
    training, batches = trainable.config, len(trainable.division)
    path = folder / SCHEDULE_FILE
    schedule = read_schedule(path) if resume else None
    if schedule is None:
        costs = _measure(trainable, fabric)
        schedule = fabric.broadcast(fitting_schedule(training, batches, costs))
        if fabric.is_global_zero:
            write_text(path, json.dumps(asdict(schedule) | {"seconds": asdict(costs)}, indent=2) + "\n")
    logger.info("%g minutes: %d epochs of %d batches", training.minutes, schedule.epochs, schedule.batches)
    slabs = trainable.division.samples_per_epoch
    changes = {"epochs": schedule.epochs, "samples_per_epoch": max(1, slabs * schedule.batches // batches)}
    return training.model_copy(update=changes)


def read_schedule(path: Path) -> Schedule | None:
    """The schedule in a file; None if there is no file. Raises: DataError for a broken one."""
    if not path.is_file():
        return None
    content = read_object(path)
    epochs, batches = content.get("epochs"), content.get("batches")
    if type(epochs) is not int or type(batches) is not int or min(epochs, batches) < 1:
        raise DataError(f'{path}: expected {{"epochs": N, "batches": N, ...}}')
    return Schedule(epochs, batches)


def _measure(trainable: Trainable, fabric: Fabric) -> Costs:
    assert trainable.config.minutes is not None
    started = time.monotonic()
    limit = 60 * trainable.config.minutes * _MEASURED_SHARE
    features, first = trainable.features, 0.0
    if features is not None:
        # The same slabs are drawn each time, so their features are in the cache the second time.
        with trial(trainable, fabric, check_gradients) as passes:
            first = seconds_a_pass(passes, limit, fabric)
    single_slice_steps = trainable.single_slice_steps
    with trial(trainable, fabric, check_gradients) as passes, _late_in_the_run(trainable):
        trainable.single_slice_steps = 0
        slabs = single = seconds_a_pass(passes, limit, fabric)
        if single_slice_steps:
            trainable.single_slice_steps = sys.maxsize
            single = seconds_a_pass(passes, limit, fabric)
        validation = fabric.broadcast(trainable.validation_seconds() / fabric.world_size)
    costs = Costs(single, slabs, validation, spent=time.monotonic() - started)
    if features is None:
        return costs
    slices_a_batch = trainable.division.samples_per_epoch / len(trainable.division) * features.views.slab_slices
    return replace(
        costs,
        first_time=max(0.0, first - slabs),
        first_times=features.num_slices / slices_a_batch,
        refresh=features.config.refresh,
    )


@contextmanager
def _late_in_the_run(trainable: Trainable) -> Iterator[None]:
    """If the average of the weights teaches, it does so now, as in all of a run but its first steps."""
    decay = trainable.config.ema_decay
    if not trainable.has_teacher or decay is None:
        yield
        return
    trainable.teacher = EMA(trainable, decay)
    trainable.progress.step = trainable.config.epochs * len(trainable.division)
    try:
        yield
    finally:
        trainable.teacher = None


def seconds_a_pass(passes: Iterator[None], limit_seconds: float, fabric: Fabric) -> float:
    """The mean seconds of a pass, its loading included; of the first process, where several train together.

    The first pass is left out. At least three passes are taken and at most 20, until `limit_seconds` are over.
    """
    ends: list[float] = []
    while True:
        next(passes)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.monotonic())
        count, measured = len(ends), ends[-1] - ends[0]
        enough = count >= _MOST_BATCHES or (count > 2 and measured > limit_seconds)
        enough, mean = fabric.broadcast((enough, measured / max(1, count - 1)))
        if enough:
            return mean
