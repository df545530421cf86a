"""A table of the paper run again: the `reproduce` command, step by step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_3dmed.errors import UserError
from sam2_3dmed.experiments.clusters import Ended, one_by_one
from sam2_3dmed.experiments.manifest import write_manifest
from sam2_3dmed.experiments.planning import Experiment, Request, Row, Run, plan_experiment
from sam2_3dmed.experiments.plans import plan_file
from sam2_3dmed.experiments.results import TaskTable, task_table
from sam2_3dmed.experiments.run_executor import RUNS, Place
from sam2_3dmed.experiments.tables import latex, markdown, table_csv
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.report.charts import cost_chart, save_figure
from sam2_3dmed.run.run_config import RunRecord

Runner = Callable[[Sequence[Run], Path, Ended], None]
"""Carries out runs below a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Where a table is, its text, and the runs that failed: their folder and why."""

    folder: Path
    text: str
    failures: tuple[tuple[Path, str], ...]


def reproduce(request: Request, runner: Runner = one_by_one) -> Outcome:
    """Carry out the runs of a table that are not done yet, and write the table after each. runner: where.

    Raises:
        UserError: no such table, task, method or setting, or no data. Terminated, KeyboardInterrupt: stopped; the next
            call goes on from there.
    """
    experiment = plan_experiment(request)
    folder = request.out / f"table_{request.table}"
    runs = experiment.runs
    missing = [run for run in runs if Place.of(run, request.out).state != "done"]
    for run in missing:  # once, before several jobs would make the same file
        plan_file(request.out, run.task.folder, run.task.content, run.config.split)
    if missing:
        logger.info("%d of %d runs are to be carried out", len(missing), len(runs))
        runner(missing, request.out, lambda run: _ended(run, experiment, folder))
    text = _write(experiment, folder)
    places = [Place.of(run, request.out) for run in runs]
    return Outcome(folder, text, tuple((p.folder, p.failure) for p in places if p.failure and p.state != "done"))


def _ended(run: Run, experiment: Experiment, folder: Path) -> None:
    state = Place.of(run, experiment.request.out).state
    logger.info("%s, %s, seed %d: %s", run.method, run.task.name, run.seed, state)
    _write(experiment, folder)


def _write(experiment: Experiment, folder: Path) -> str:
    """Everything of a table, as far as it is known; for each data set with two measured rows or more also the picture
    of accuracy against cost. Returns: the Markdown.
    """
    tables = [task_table(experiment, task) for task in experiment.tasks]
    drawn = {table.task.name: picture for table in tables if (picture := _draw(table, folder))}
    text = markdown(experiment.paper, tables, drawn)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", table_csv(experiment.paper, tables))
    write_text(folder / "table.tex", latex(experiment.paper, tables))
    write_manifest(experiment, folder)
    return text


def _draw(table: TaskTable, folder: Path) -> str | None:
    """Returns: the file's name, if there is something to draw."""
    points = {
        row.title: (row.cost["gflop"], row.cells["dice"].ours, row.cells["dice"].interval, row.cost["parameters"])
        for row in table.rows
        if row.cells["dice"].ours is not None and row.cost["gflop"]
    }
    if len(points) < 2:
        return None
    figure = cost_chart(f"{table.task.name}: accuracy and cost", points, "GFLOP a volume", "mean Dice")
    name = f"accuracy_and_cost_{table.task.name}"
    save_figure(figure, folder, name)
    return f"{name}.png"


@dataclass(frozen=True)
class _Estimate:
    """What a run still takes. rough: by runs on other data or with other settings."""

    seconds: float
    rough: bool = False

    @property
    def text(self) -> str:
        return f"about {self.seconds / 60:.0f} min{', rough' if self.rough else ''}"


def describe(request: Request) -> str:
    """The runs of a table, what is done of each, and how long the others would take, as far as that can be known."""
    experiment = plan_experiment(request)
    lines: list[str] = []
    left: list[_Estimate | None] = []
    for run in experiment.runs:
        place = Place.of(run, request.out)
        about = ""
        if place.state != "done":
            estimate = _estimate(run, experiment, place)
            left.append(estimate)
            about = estimate.text if estimate else "?"
        rows = " = ".join(row.method for row in experiment.rows if run.key in _keys(row))
        lines.append(f"{run.task.name:<20} {rows:<24} seed {run.seed}  {run.key}  {place.state:<8} {about}".rstrip())
    lines += [f"{row.title}: not run: {row.problem}" for row in experiment.rows if row.problem]
    return "\n".join([*lines, f"{len(experiment.runs)} runs; {_total(left, request)}"])


def _keys(row: Row) -> set[str]:
    return {run.key for runs in row.runs.values() for run in runs}


def _total(left: Sequence[_Estimate | None], request: Request) -> str:
    known = [estimate for estimate in left if estimate is not None]
    unknown = len(left) - len(known)
    parts = []
    if known:
        rough = " (rough: by runs on other data or with other settings)" if any(one.rough for one in known) else ""
        hours = sum(one.seconds for one in known) / 3600
        about = f"about {hours:.1f}" if hours >= 0.05 else "less than 0.1"
        parts.append(f"what is left takes {about} hours{rough}")
    if unknown:
        how = "a finished run of the row tells how long it takes"
        how += ", or --minutes sets it" if request.minutes is None else ""
        parts.append(f"of {unknown} nothing is known yet: {how}")
    return ", and ".join(parts) or "all are done"


def _estimate(run: Run, experiment: Experiment, place: Place) -> _Estimate | None:
    """By its budget; else as finished runs of the method took, on the same data if there are any."""
    out = experiment.request.out
    alike = (one for one in experiment.runs if (one.task.name, one.method) == (run.task.name, run.method))
    same = [took for one in alike if (took := _took(Place.of(one, out)))]
    spent = place.cost.get("training", {}).get("seconds") or 0.0
    minutes = run.config.training.minutes
    if minutes is not None and place.state != "trained":
        test = float(np.mean([test for _, test in same])) if same else 0.0
        return _Estimate(max(0.0, 60 * minutes - spent) + test)
    known = same or _elsewhere(run, out)
    if not known:
        return None
    training, test = (float(mean) for mean in np.mean(known, axis=0))
    return _Estimate((0.0 if place.state == "trained" else max(0.0, training - spent)) + test, rough=not same)


def _took(place: Place) -> tuple[float, float] | None:
    """Seconds of training and of the test, once there are both."""
    cost = place.cost
    return (cost["training"]["seconds"], cost["test"]["seconds"]) if {"training", "test"} <= cost.keys() else None


def _elsewhere(run: Run, out: Path) -> list[tuple[float, float]]:
    """Seconds of training, for as many epochs as this run has, and of the test, of finished runs of its method with
    other data or settings; not of those that were trained for so many minutes, which says nothing of epochs.
    """
    found = []
    for place in map(Place, sorted((out / RUNS).glob(f"*/{run.method}-seed*"))):
        took = _took(place)
        if took is None or place.state != "done":
            continue
        try:
            told = RunRecord.read(place.folder).recipe.training
        except UserError:
            continue
        if told.minutes is None:
            found.append((run.config.training.epochs / told.epochs * took[0], took[1]))
    return found
