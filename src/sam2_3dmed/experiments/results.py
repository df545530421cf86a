"""From the evaluations of a table's runs to its cells: measured beside reported, and what of it is significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.errors import UserError
from sam2_3dmed.evaluation.definitions import nsd_column
from sam2_3dmed.evaluation.metrics import MEAN_NAME
from sam2_3dmed.evaluation.scores import Scores, aligned, check_comparable, read_scores
from sam2_3dmed.evaluation.statistics import (
    ALPHA,
    Better,
    PairedDifference,
    bootstrap_interval_of_mean,
    goodness,
    holm,
    paired_difference,
)
from sam2_3dmed.experiments.methods import FULL, METHODS
from sam2_3dmed.experiments.paper import METRICS
from sam2_3dmed.experiments.planning import Experiment, Row, Run, Task
from sam2_3dmed.experiments.run_executor import Place

_ROW = ("mean", MEAN_NAME)
_BETTER: Mapping[str, Better] = {"dice": "higher", "iou": "higher", "hd95": "lower", "nsd": "higher"}


@dataclass(frozen=True)
class Cell:
    """A metric of a row on a data set; values are means over classes, seeds and cases.

    paper: reported. ours: measured, with its bootstrap interval over cases. seed_std: between the means of seeds, None
    for one seed. best, paper_best: among the rows. against_full: paired with the whole method, None for that itself.
    p_holm: of that, adjusted for all rows of the metric on this data set.
    """

    paper: float | None
    ours: float | None = None
    interval: tuple[float, float] | None = None
    seed_std: float | None = None
    best: bool = False
    paper_best: bool = False
    against_full: PairedDifference | None = None
    p_holm: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus reported."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper

    @property
    def significant(self) -> bool:
        """Whether the row differs from the whole method."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class TaskRow:
    """A row of one data set's part of a table.

    seeds: how many runs are in it, of how many. note: what is unlike in it; why numbers are missing. cost: what its
    runs took.
    """

    method: str
    title: str
    cells: Mapping[str, Cell]
    seeds: int
    asked: int
    note: str
    cost: Mapping[str, float | None]


@dataclass(frozen=True)
class TaskTable:
    """A data set's part of a table. columns: metric -> the column of cases.csv; empty as long as nothing is scored."""

    task: Task
    rows: tuple[TaskRow, ...]
    full: str | None
    cases: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class _Measured:
    """values: metric -> (seeds, cases)."""

    values: Mapping[str, NDArray[np.float64]]
    note: str
    cost: Mapping[str, float | None]


def task_table(experiment: Experiment, task: Task) -> TaskTable:
    """What there is so far of one data set."""
    out, same = experiment.request.out, _same_as_full(experiment, task)
    reference: Scores | None = None
    measured: dict[str, _Measured] = {}
    for row in sorted(experiment.rows, key=lambda row: row.method not in same):  # the whole method is the measure
        found, reference = _measure(row, row.runs.get(task.name, ()), out, reference)
        measured[row.method] = found
    cells = {row.method: _paper_cells(experiment, row, task) for row in experiment.rows}
    for metric in METRICS:
        _fill(cells, {name: found.values.get(metric) for name, found in measured.items()}, metric, same)
    rows = tuple(
        TaskRow(
            method=row.method,
            title=row.title,
            cells=cells[row.method],
            seeds=len(measured[row.method].values.get("dice", ())),
            asked=len(row.runs.get(task.name, ())),
            note="; ".join(filter(None, [_caveat(row), measured[row.method].note, _sameness(row, same)])),
            cost=measured[row.method].cost,
        )
        for row in experiment.rows
    )
    return TaskTable(
        task, rows, same[0] if same else None, len(reference.cases) if reference else 0, _columns(reference)
    )


def _same_as_full(experiment: Experiment, task: Task) -> list[str]:
    """The rows that are the whole method on this data, by their runs: itself first, and what happens to be the same."""
    keys = [run.key for run in experiment.full[task.name]]
    same = [row.method for row in experiment.rows if [run.key for run in row.runs.get(task.name, ())] == keys]
    return sorted(same, key=lambda method: method != FULL)


def _caveat(row: Row) -> str:
    """What is unlike in a row; of a network that is told the names of classes, also what it makes of them."""
    configs = [run.config for runs in row.runs.values() for run in runs]
    names = next((config.names for config in configs if isinstance(config, PatchConfig) and config.names), None)
    return "; ".join(filter(None, [METHODS[row.method].caveat, names and f"names of classes {names}"]))


def _sameness(row: Row, same: Sequence[str]) -> str:
    return "the same runs as the whole method" if row.method in same[1:] else ""


def _paper_cells(experiment: Experiment, row: Row, task: Task) -> dict[str, Cell]:
    reported = experiment.paper.values.get(row.title, {}).get(task.column or "", {})
    return {metric: Cell(reported.get(metric)) for metric in METRICS}


def _columns(scores: Scores | None) -> dict[str, str]:
    """The column of each of the paper's metrics; NSD at the first tolerance, which is the plan's."""
    if scores is None:
        return {}
    nsd = next(
        (nsd_column(entry["tolerance_mm"]) for entry in scores.metrics.values() if "tolerance_mm" in entry), "nsd"
    )
    return {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd": nsd}


def _measure(row: Row, runs: Sequence[Run], out: Path, reference: Scores | None) -> tuple[_Measured, Scores | None]:
    """The scores of a row's runs, as far as there are any, and those that all others are brought in line with."""
    notes = [row.problem] if row.problem else []
    found: list[Scores] = []
    costs: list[Mapping[str, Any]] = []
    for run in runs:
        place = Place.of(run, out)
        if place.state != "done":
            notes.append(f"seed {run.seed}: " + (f"failed: {place.failure}" if place.failure else _WORDS[place.state]))
            continue
        try:
            scores = read_scores(place.folder)
            reference = reference or scores
            check_comparable([reference, scores], list(_columns(reference).values()))
            found.append(aligned(scores, reference.cases))
            costs.append(place.cost)
        except UserError as error:
            notes.append(f"seed {run.seed}: {error}")
    values = {
        metric: np.stack([scores.values[_ROW, column] for scores in found])
        for metric, column in _columns(reference).items()
        if found
    }
    return _Measured(values, "; ".join(notes), _mean_cost(costs)), reference


_WORDS = {"missing": "not run yet", "begun": "training is not finished", "trained": "not tested yet"}


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the seeds."""
    asked = {
        "parameters": ("prediction", "parameters"),
        "gflop": ("prediction", "gflop"),
        "prediction_seconds": ("prediction", "seconds"),
        "prediction_memory_mb": ("prediction", "memory_mb"),
        "prediction_gpu_memory_mb": ("prediction", "gpu_memory_mb"),
        "prediction_energy_kj": ("prediction", "energy_kj"),
        "training_seconds": ("training", "seconds"),
        "training_memory_mb": ("training", "memory_mb"),
        "training_gpu_memory_mb": ("training", "gpu_memory_mb"),
        "training_energy_kj": ("training", "energy_kj"),
    }
    means: dict[str, float | None] = {}
    for name, (part, key) in asked.items():
        known = [cost[part][key] for cost in costs if cost.get(part, {}).get(key) is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _fill(
    cells: dict[str, dict[str, Cell]],
    values: Mapping[str, NDArray[np.float64] | None],
    metric: str,
    same: Sequence[str],
) -> None:
    """Put one metric's numbers into the cells of all rows.

    values: (seeds, cases) of each row, None without a run. same: rows that are the whole method, with which the others
    are compared.
    """
    better = _BETTER[metric]
    by_case = {name: array.mean(axis=0) for name, array in values.items() if array is not None}
    full = next((by_case[name] for name in same if name in by_case), None)
    paired = {
        name: paired_difference(array, full, better)
        for name, array in by_case.items()
        if full is not None and name not in same
    }
    adjusted = dict(zip(paired, holm(found.p_value for found in paired.values()), strict=True))
    means = {name: float(array.mean()) for name, array in by_case.items()}
    reported = {name: row[metric].paper for name, row in cells.items()}
    for name, row in cells.items():
        row[metric] = replace(row[metric], paper_best=_is_best(reported, name, better))
    for name, mean in means.items():
        seeds = np.asarray(values[name]).mean(axis=1)
        cells[name][metric] = replace(
            cells[name][metric],
            ours=mean,
            interval=bootstrap_interval_of_mean(by_case[name]),
            seed_std=float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
            best=_is_best(means, name, better),
            against_full=paired.get(name),
            p_holm=adjusted.get(name),
        )


def _is_best(values: Mapping[str, float | None], name: str, better: Better) -> bool:
    """Whether no other row is better, of those that have a number; alone, it is not called the best."""
    known = {other: float(goodness(value, better)) for other, value in values.items() if value is not None}
    return name in known and len(known) > 1 and known[name] == max(known.values())
