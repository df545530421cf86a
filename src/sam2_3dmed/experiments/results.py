"""From the evaluations of a table's runs to its cells: measured beside reported, with tests of significance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import UserError
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
from sam2_3dmed.experiments.planning import Experiment, Row, Run, Task
from sam2_3dmed.experiments.run_executor import RunStatus

_ROW = ("mean", MEAN_NAME)
_BETTER: Mapping[str, Better] = {"dice": "higher", "iou": "higher", "hd95": "lower", "nsd": "higher"}
_UNFINISHED = {"missing": "not run yet", "begun": "training is not finished", "trained": "not tested yet"}
_RESOURCES = ("seconds", "memory_mb", "gpu_memory_mb", "energy_kj")
_COSTS = {
    "parameters": ("prediction", "parameters"),
    "gflop": ("prediction", "gflop"),
    **{f"{part}_{name}": (part, name) for part in ("prediction", "training") for name in _RESOURCES},
}


@dataclass(frozen=True)
class Cell:
    """A metric of a row on a data set. Values are means over classes, seeds and cases.

    Attributes:
        paper: Reported value.
        ours: Measured value.
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
        cost: Means over seeds.
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
    scores: dict[str, list[Scores]] = {}
    costs: dict[str, dict[str, float | None]] = {}
    notes: dict[str, list[str]] = {}
    for row in sorted(experiment.rows, key=lambda row: row.method not in same):  # the complete method is the reference
        runs = row.runs.get(task.name, ())
        finished, notes[row.method] = _finished(runs, experiment.request.out, reference)
        scores[row.method], costs[row.method] = [one for one, _ in finished], _mean_cost([cost for _, cost in finished])
        reference = reference or next(iter(scores[row.method]), None)
    columns, reported = _columns(reference), experiment.paper.values
    cells: dict[str, dict[str, Cell]] = {}
    for metric in METRICS:
        papers = {
            row.method: reported.get(row.title, {}).get(task.column or "", {}).get(metric) for row in experiment.rows
        }
        measured = {
            name: np.stack([one.values[_ROW, columns[metric]] for one in found])
            for name, found in scores.items()
            if found
        }
        cells[metric] = _cells(papers, measured, same, _BETTER[metric])
    rows = tuple(
        TaskRow(
            method=row.method,
            title=row.title,
            cells={metric: of_rows[row.method] for metric, of_rows in cells.items()},
            seeds=len(scores[row.method]),
            asked=len(row.runs.get(task.name, ())),
            note="; ".join([*_caveats(row), *notes[row.method], *_equality(row, same)]),
            cost=costs[row.method],
        )
        for row in experiment.rows
    )
    cases = len(reference.cases) if reference else 0
    return TaskTable(task, rows, same[0] if same else None, cases, columns)


def _same_as_full(experiment: Experiment, task: Task) -> list[str]:
    """The rows with the runs of the complete method on this data set, that method first."""
    keys = [run.key for run in experiment.full[task.name]]
    same = [row.method for row in experiment.rows if [run.key for run in row.runs.get(task.name, ())] == keys]
    return sorted(same, key=lambda method: method != FULL)


def _caveats(row: Row) -> list[str]:
    configs = [run.config for runs in row.runs.values() for run in runs]
    names = next((names for config in configs if (names := getattr(config, "names", None))), None)
    notes = [find_method(row.method).caveat, names and f"names of classes {names}", row.problem]
    return [note for note in notes if note]


def _equality(row: Row, same: Sequence[str]) -> list[str]:
    return ["the same runs as the whole method"] if row.method in same[1:] else []


def _columns(scores: Scores | None) -> dict[str, str]:
    """The column of each of the paper's metrics; NSD at the first tolerance, which is the plan's."""
    if scores is None:
        return {}
    tolerances = [entry["tolerance_mm"] for entry in scores.metrics.values() if "tolerance_mm" in entry]
    return {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd": nsd_column(tolerances[0]) if tolerances else "nsd"}


def _finished(
    runs: Sequence[Run], out: Path, reference: Scores | None
) -> tuple[list[tuple[Scores, Mapping[str, Any]]], list[str]]:
    """Read the scores and costs of the finished runs of a row. reference: scores that they must be comparable with.

    Returns: scores and costs, and notes about the other runs.
    """
    found: list[tuple[Scores, Mapping[str, Any]]] = []
    notes = []
    for run in runs:
        status = RunStatus.find(run, out)
        if status.state != "done":
            reason = f"failed: {status.failure}" if status.failure else _UNFINISHED[status.state]
            notes.append(f"seed {run.seed}: {reason}")
            continue
        try:
            scores = read_scores(status.folder)
            reference = reference or scores
            check_comparable([reference, scores], list(_columns(reference).values()))
            found.append((aligned(scores, reference.cases), status.cost))
        except UserError as error:
            notes.append(f"seed {run.seed}: {error}")
    return found, notes


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name, (part, key) in _COSTS.items():
        known = [cost[part][key] for cost in costs if cost.get(part, {}).get(key) is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _cells(
    reported: Mapping[str, float | None],
    values: Mapping[str, NDArray[np.float64]],
    same: Sequence[str],
    better: Better,
) -> dict[str, Cell]:
    """The cells of one metric, by row.

    Args:
        reported: The paper's value of every row.
        values: (seeds, cases) of each row with a finished run.
        same: The rows of the complete method, which the others are compared with.
        better: Which direction of the metric is better.
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
    cells = {name: Cell(paper, paper_best=_is_best(reported, name, better)) for name, paper in reported.items()}
    for name, mean in means.items():
        seed_means = values[name].mean(axis=1)
        cells[name] = Cell(
            reported[name],
            mean,
            bootstrap_interval_of_mean(by_case[name]),
            seed_std=float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None,
            best=_is_best(means, name, better),
            paper_best=cells[name].paper_best,
            against_full=paired.get(name),
            p_holm=adjusted.get(name),
        )
    return cells


def _is_best(values: Mapping[str, float | None], name: str, better: Better) -> bool:
    """Whether no other row is better. A single value is not called the best."""
    known = {other: float(goodness(value, better)) for other, value in values.items() if value is not None}
    return name in known and len(known) > 1 and known[name] == max(known.values())
