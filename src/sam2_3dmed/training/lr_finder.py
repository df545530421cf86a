"""Which learning rate to begin with: the loss while the rate grows from far too small to far too large."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lightning.fabric import Fabric

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.processes.atomic import replacing, write_csv
from sam2_3dmed.training.loop import Learner, trial
from sam2_3dmed.training.trainable import Trainable

_LOWEST, _HIGHEST = 1e-7, 1.0
_STEPS = 100
_SMOOTHING = 0.9
_DIVERGED = 4.0
"""The smoothed loss, in multiples of its lowest value, at which the test ends."""


@dataclass(frozen=True)
class RateTest:
    """The rates of a test's steps, and the losses before them, as they were and smoothed."""

    rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest, beyond which it soon explodes.

        The rate of the steepest fall, which is also in use, is far too low here: see docs/notes/scratch_preset.md.

        Raises:
            TrainingError: the loss never fell.
        """
        lowest = min(range(len(self.rates)), key=self.smoothed.__getitem__)
        if self.smoothed[lowest] >= self.smoothed[0]:
            raise TrainingError("the loss falls at no learning rate, so none is suggested; learning_rates.csv has all")
        return self.rates[lowest] / 10

    def write(self, folder: Path) -> None:
        """Write learning_rates.csv and learning_rates.png.

        Raises:
            DataError, OSError: they cannot be written.
        """
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        names = ("learning_rate", "loss", "smoothed")
        write_csv(folder / "learning_rates.csv", [dict(zip(names, row, strict=True)) for row in rows])
        with replacing(folder / "learning_rates.png") as file:
            self._draw(file)

    def _draw(self, file: BinaryIO) -> None:
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
