"""Which learning rate to begin with: the loss while the rate grows from far too small to far too large."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.errors import TrainingError
from sam2_3dmed.processes.atomic import replacing, write_text
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
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["learning_rate", "loss", "smoothed"])
        writer.writerows(zip(self.rates, self.losses, self.smoothed, strict=True))
        write_text(folder / "learning_rates.csv", text.getvalue())
        with replacing(folder / "learning_rates.png") as file:
            file.write(_draw(self))


def find_rate(trainable: Trainable, loader: Any, training: TrainingConfig, fabric: Fabric) -> RateTest:
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
            group["lr"] = rate * group["initial_lr"] / training.learning_rate
        if math.isfinite(loss):
            rates.append(rate)
            losses.append(loss)
        smoothed = smooth(losses)
        exploded = not math.isfinite(loss) or smoothed[-1] > _DIVERGED * min(smoothed)

    with trial(trainable, loader, training, fabric, set_rate) as passes:
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


def _draw(test: RateTest) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, ".", color="0.7", markersize=4, label="loss")
    axes.plot(test.rates, test.smoothed, color="#0072B2", label="smoothed")
    axes.axvline(test.suggestion, color="#D55E00", linestyle="--", label=f"suggestion {test.suggestion:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(0, 1.5 * test.losses[0]))
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
