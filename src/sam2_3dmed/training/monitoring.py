"""What a run measures of itself: means of an epoch, gradients, time that waiting takes, and curves.csv."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.processes.atomic import write_csv
from sam2_3dmed.training.distributed import gather

_MUCH_WAITING = 0.1

State = dict[str, dict[str, float]]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class EpochMeans:
    """Weighted means of values by name. Sums stay on the device of the values, so that adding waits for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Count a value."""
        value = torch.as_tensor(value).detach().double() * weight
        if name in self._sums:
            value = self._sums[name].to(value.device) + value
        self._sums[name] = value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def compute(self) -> dict[str, float]:
        """The means over all processes, in the order in which the names first came; all must call this."""
        state = self.state_dict()
        return {name: value / state["weights"][name] for name, value in state["sums"].items() if state["weights"][name]}

    def clear(self) -> None:
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> State:
        """Sums and weights over all processes, which may differ in names, as plain numbers; all must call this."""
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for state in gather({name: (float(value), self._weights[name]) for name, value in self._sums.items()}):
            for name, (value, weight) in state.items():
                sums[name] = sums.get(name, 0.0) + value
                weights[name] = weights.get(name, 0.0) + weight
        return {"sums": sums, "weights": weights}

    def load_state_dict(self, state: State) -> None:
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])


def gradient_norms(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The Euclidean norm over all gradients of each part that has any."""
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in parts.items()
    }
    return {name: nn.utils.get_total_norm(found) for name, found in gradients.items() if found}


class DataWait:
    """The share of training time that waiting for batches takes. Validation and checkpoints are no part of either."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._came = self._waiting = self._working = 0.0
        self._before = (0.0, 0.0)
        """What had been waited and worked before this epoch."""

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader, of which each is waited for. Call `done` after the pass of each."""
        asked = self._clock()
        for batch in loader:
            self._came = self._clock()
            self._waiting += self._came - asked
            yield batch
            asked = self._clock()

    def done(self) -> None:
        """Count the time since the batch came as work."""
        self._working += self._clock() - self._came

    def end_epoch(self) -> float:
        """The share in this epoch."""
        waited, worked = self._before
        self._before = self._waiting, self._working
        return _share(self._waiting - waited, self._working - worked)

    def log(self) -> None:
        """Log the share in the run."""
        share = _share(self._waiting, self._working)
        advice = "; more training.workers may help" if share > _MUCH_WAITING else ""
        logger.info("waiting for slabs took %.1f%% of training%s", 100 * share, advice)


def _share(waiting: float, working: float) -> float:
    return waiting / (waiting + working) if waiting + working > 0 else 0.0


def append_curves(path: Path, row: Mapping[str, Any]) -> None:
    """Write `curves.csv` anew with the row of an epoch: losses, learning rate, gradients, position errors, validation.

    Rows of this epoch and later ones, of a run that a checkpoint did not reach, are dropped.
    """
    rows: list[Mapping[str, Any]] = []
    if path.exists():
        try:
            rows = [before for before in read_curves(path) if before["epoch"] < row["epoch"]]
        except DataError as error:  # the run is worth more than its curves so far
            aside = path.with_suffix(".broken")
            logger.warning("%s; it is now %s, and the curves go on without it", error, aside.name)
            path.replace(aside)
    write_csv(path, [*rows, row])


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The rows of `curves.csv`: the epoch as a number, all else as it is written; a DataError if it is broken."""
    rows: list[dict[str, Any]] = []
    for number, cells in read_csv(path, ["epoch"]).lines:
        if not cells["epoch"].isascii() or not cells["epoch"].isdigit() or len(cells["epoch"]) > 9:
            raise DataError(f"{path}: line {number}: {shown(cells['epoch'])} is no epoch")
        rows.append({**cells, "epoch": int(cells["epoch"])})
    return rows
