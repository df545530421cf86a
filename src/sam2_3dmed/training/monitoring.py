"""What a run measures of itself: means of an epoch, gradients, time that waiting takes, and curves.csv."""

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam2_3dmed.processes.atomic import write_text

_MUCH_WAITING = 0.1

State = dict[str, dict[str, float]]

logger = logging.getLogger(__name__)


class EpochMeans:
    """Weighted means of values by name. Sums stay on the device of the values, so that adding waits for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Count a value."""
        value = torch.as_tensor(value).detach().double() * weight
        before = self._sums.get(name)
        self._sums[name] = value if before is None else before.to(value.device) + value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def compute(self, gather: Callable[[State], Sequence[State]] = lambda state: [state]) -> dict[str, float]:
        """The means, in the order in which the names first came.

        gather: collects the states of all processes, which may differ in names; all must call this.
        """
        state = merged(gather(self.state_dict()))
        return {name: value / state["weights"][name] for name, value in state["sums"].items() if state["weights"][name]}

    def clear(self) -> None:
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> State:
        """Sums and weights as plain numbers, for a checkpoint."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: State) -> None:
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])


def merged(states: Sequence[State]) -> State:
    """The states of several processes as one."""
    sums, weights = ({name: 0.0 for state in states for name in state["sums"]} for _ in range(2))
    for state in states:
        for name in state["sums"]:
            sums[name] += state["sums"][name]
            weights[name] += state["weights"][name]
    return {"sums": sums, "weights": weights}


def gradient_norms(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The Euclidean norm over all gradients of each part that has any."""
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in parts.items()
    }
    return {name: nn.utils.get_total_norm(found) for name, found in gradients.items() if found}


def not_finite(losses: Mapping[str, float], norms: Mapping[str, float]) -> list[str]:
    """What is not finite of the losses and the norms of the gradients, in words."""
    values = {f"{name} gradient": value for name, value in norms.items()}
    values |= {f"{name} loss": value for name, value in losses.items()}
    return [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]


class DataWait:
    """The share of training time that is spent waiting for batches. Validation and checkpoints are no part of either.

    Call `start` before each batch is asked for, `came` when it is there, and `done` after its pass.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = 0.0
        self._epoch = [0.0, 0.0]
        self._run = [0.0, 0.0]

    def start(self) -> None:
        self._since = self._clock()

    def came(self) -> None:
        self._count(0)

    def done(self) -> None:
        self._count(1)

    def end_epoch(self) -> float:
        """The share in this epoch."""
        share = _share(*self._epoch)
        self._epoch = [0.0, 0.0]
        return share

    def log(self) -> None:
        """Log the share in the run."""
        share = _share(*self._run)
        advice = "; more training.workers may help" if share > _MUCH_WAITING else ""
        logger.info("waiting for slabs took %.1f%% of training%s", 100 * share, advice)

    def _count(self, kind: int) -> None:
        now = self._clock()
        self._epoch[kind] += now - self._since
        self._run[kind] += now - self._since
        self._since = now


def _share(waiting: float, working: float) -> float:
    return waiting / (waiting + working) if waiting + working > 0 else 0.0


class CurvesFile:
    """`curves.csv`, a row an epoch: losses, learning rate, gradients, position errors, validation.

    next_epoch: where the run goes on; later rows, of a run that a checkpoint did not reach, are dropped.
    """

    def __init__(self, path: Path, next_epoch: int = 0) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < next_epoch]

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the file anew, with this row. Columns that a row does not have stay empty."""
        self._rows.append(dict(row))
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())
