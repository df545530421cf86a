"""From the evaluations of a table's runs to its cells: measured beside reported, with tests of significance."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.evaluation.metrics import MEAN_NAME, Better, nsd_column
from sam2_3dmed.evaluation.scores import Scores, aligned, check_comparable, read_scores
from sam2_3dmed.evaluation.statistics import (
    ALPHA,
    PairedDifference,
    bootstrap_interval_of_mean,
    goodness,
    holm,
    paired_difference,
)
from sam2_3dmed.experiments.paper import FULL, METRICS, find_method
from sam2_3dmed.experiments.planning import Experiment, Row, Task
from sam2_3dmed.experiments.run_executor import RunStatus

COSTS = {
    "parameters": ("prediction", "parameters", "parameters [M]", 1e6),
    "gflop": ("prediction", "gflop", "GFLOP a volume", 1.0),
    "prediction_seconds": ("prediction", "seconds", "s a volume", 1.0),
    "prediction_memory_mb": ("prediction", "memory_mb", "prediction [GB]", 1e3),
    "training_seconds": ("training", "seconds", "training [h]", 3600.0),
    "training_memory_mb": ("training", "memory_mb", "training [GB]", 1e3),
    "prediction_gpu_memory_mb": ("prediction", "gpu_memory_mb", "prediction, GPU [GB]", 1e3),
    "training_gpu_memory_mb": ("training", "gpu_memory_mb", "training, GPU [GB]", 1e3),
    "training_energy_kj": ("training", "energy_kj", "training [kJ]", 1.0),
    "prediction_energy_kj": ("prediction", "energy_kj", "kJ a volume", 1.0),
}
"""The costs of a row: its part of cost.json and its key there, its heading in table.md and the unit there."""
_ROW = ("mean", MEAN_NAME)
_BETTER: Mapping[str, Better] = {"dice": "higher", "iou": "higher", "hd95": "lower", "nsd": "higher"}
_UNFINISHED = {"missing": "not run yet", "begun": "training is not finished", "trained": "not tested yet"}


@dataclass(frozen=True)
class Cell:
    """A metric of a row on a data set. Values are means over classes, seeds and cases.

    Attributes:
        paper, ours: Reported and measured value.
        interval: Bootstrap interval of `ours` over cases.
        seed_std: Standard deviation between the means of seeds, None for one seed.
        best, paper_best: Whether the value is the best of the rows.
        against_full: Paired difference from the complete method, None for that method.
        p_holm: Its p, adjusted for all rows of the metric on this data set.
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
        """Whether the row differs from the complete method."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class TaskRow:
    """A row of a table for one data set.

    Attributes:
        cells: By metric.
        seeds: Number of finished runs, out of `asked`.
        note: Caveat of the row, and why numbers are missing.
        cost: By the names of COSTS, means over seeds.
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
    """A table for one data set.

    Attributes:
        full: The row of the complete method, None if there is none.
        cases: Number of test cases.
        columns: Metric -> column of cases.csv; empty while nothing is scored.
    """

    task: Task
    rows: tuple[TaskRow, ...]
    full: str | None
    cases: int
    columns: Mapping[str, str]


def task_table(experiment: Experiment, task: Task) -> TaskTable:
    """Collect what is measured so far on one data set."""
    same = _same_as_full(experiment, task)
    reference: Scores | None = None
    scores: dict[str, list[Scores]] = defaultdict(list)
    costs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in sorted(experiment.rows, key=lambda row: row.method not in same):  # the complete method is the reference
        for run in row.runs.get(task.name, ()):
            status = RunStatus.find(run, experiment.request.out)
            try:
                found = _read_scores(status, reference)
            except UserError as error:
                reasons[row.method].append(f"seed {run.seed}: {error}")
                continue
            reference = reference or found
            scores[row.method].append(found)
            costs[row.method].append(status.cost)
    columns = _columns(reference) if reference else {}
    cells = {}
    for metric in METRICS:
        values = {name: np.stack([one.values[_ROW, columns[metric]] for one in own]) for name, own in scores.items()}
        cells[metric] = _cells(_reported(experiment, task, metric), values, same, _BETTER[metric])
    rows = tuple(
        TaskRow(
            method=row.method,
            title=row.title,
            cells={metric: of_rows[row.method] for metric, of_rows in cells.items()},
            seeds=len(scores.get(row.method, ())),
            asked=len(row.runs.get(task.name, ())),
            note=_note(row, reasons[row.method], same),
            cost=_mean_cost(costs[row.method]),
        )
        for row in experiment.rows
    )
    return TaskTable(task, rows, same[0] if same else None, len(reference.cases) if reference else 0, columns)


def _same_as_full(experiment: Experiment, task: Task) -> list[str]:
    """The rows with the runs of the complete method on this data set, that method first."""
    keys = [run.key for run in experiment.full[task.name]]
    same = [row.method for row in experiment.rows if [run.key for run in row.runs.get(task.name, ())] == keys]
    return sorted(same, key=lambda method: method != FULL)


def _read_scores(status: RunStatus, reference: Scores | None) -> Scores:
    """Raise UserError if the run is not finished, or its scores are not comparable with the reference."""
    if status.state != "done":
        raise DataError(f"failed: {status.failure}" if status.failure else _UNFINISHED[status.state])
    scores = read_scores(status.folder)
    if reference is None:
        return scores
    check_comparable([reference, scores], list(_columns(reference).values()))
    return aligned(scores, reference.cases)


def _columns(scores: Scores) -> dict[str, str]:
    """The column of each of the paper's metrics; NSD at the first tolerance, which is the plan's."""
    tolerances = [entry["tolerance_mm"] for entry in scores.metrics.values() if "tolerance_mm" in entry]
    return {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd": nsd_column(tolerances[0])}


def _note(row: Row, reasons: Sequence[str], same: Sequence[str]) -> str:
    configs = [run.config for runs in row.runs.values() for run in runs]
    names = next((names for config in configs if (names := getattr(config, "names", None))), None)
    notes = [find_method(row.method).caveat, names and f"names of classes {names}", row.problem, *reasons]
    if row.method in same[1:]:
        notes.append("the same runs as the whole method")
    return "; ".join(note for note in notes if note)


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name, (part, key, *_) in COSTS.items():
        known = [cost[part][key] for cost in costs if cost.get(part, {}).get(key) is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _reported(experiment: Experiment, task: Task, metric: str) -> dict[str, float | None]:
    """The paper's value of every row."""
    values = experiment.paper.values
    return {row.method: values.get(row.title, {}).get(task.column or "", {}).get(metric) for row in experiment.rows}


def _cells(
    reported: Mapping[str, float | None],
    values: Mapping[str, NDArray[np.float64]],
    same: Sequence[str],
    better: Better,
) -> dict[str, Cell]:
    """The cells of one metric, by row.

    Args:
        values: (seeds, cases) of each row with a finished run.
        same: The rows of the complete method, which the others are compared with.
    """
    by_case = {name: array.mean(axis=0) for name, array in values.items()}
    full = next((by_case[name] for name in same if name in by_case), None)
    paired = {
        name: paired_difference(array, full, better)
        for name, array in by_case.items()
        if full is not None and name not in same
    }
    adjusted = dict(zip(paired, holm(found.p_value for found in paired.values()), strict=True))
    means = {name: float(array.mean()) for name, array in by_case.items()}
    best, paper_best = _best(means, better), _best(reported, better)
    cells = {name: Cell(paper, paper_best=name in paper_best) for name, paper in reported.items()}
    for name, mean in means.items():
        seed_means = values[name].mean(axis=1)
        cells[name] = replace(
            cells[name],
            ours=mean,
            interval=bootstrap_interval_of_mean(by_case[name]),
            seed_std=float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None,
            best=name in best,
            against_full=paired.get(name),
            p_holm=adjusted.get(name),
        )
    return cells


def _best(values: Mapping[str, float | None], better: Better) -> set[str]:
    """The rows with the best value. A single value is not called the best."""
    known = {name: float(goodness(value, better)) for name, value in values.items() if value is not None}
    return {name for name, value in known.items() if value == max(known.values())} if len(known) > 1 else set()
