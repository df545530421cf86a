"""A table of the paper run again: the `reproduce` command, step by step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_3dmed.atomic import write_text
from sam2_3dmed.experiments.clusters import Ended, one_by_one
from sam2_3dmed.experiments.manifest import write_manifest
from sam2_3dmed.experiments.planning import Experiment, Request, Row, Run, plan_experiment
from sam2_3dmed.experiments.plans import plan_file
from sam2_3dmed.experiments.results import TaskTable, task_table
from sam2_3dmed.experiments.tables import latex, markdown, table_csv
from sam2_3dmed.experiments.work import Place
from sam2_3dmed.report.charts import cost_chart, save_figure

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
    text = markdown(experiment.paper, tables)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", table_csv(experiment.paper, tables))
    write_text(folder / "table.tex", latex(experiment.paper, tables))
    for table in tables:
        _draw(table, folder)
    write_manifest(experiment, folder)
    return text


def _draw(table: TaskTable, folder: Path) -> None:
    points = {
        row.title: (row.cost["gflop"], row.cells["dice"].ours, row.cells["dice"].interval, row.cost["parameters"])
        for row in table.rows
        if row.cells["dice"].ours is not None and row.cost["gflop"]
    }
    if len(points) > 1:
        figure = cost_chart(f"{table.task.name}: accuracy and cost", points, "GFLOP a volume", "mean Dice")
        save_figure(figure, folder, f"accuracy_and_cost_{table.task.name}")


def describe(request: Request) -> str:
    """The runs of a table, what is done of each, and how long the others would take, as far as that can be known."""
    experiment = plan_experiment(request)
    lines, seconds, unknown = [], 0.0, 0
    for run in experiment.runs:
        place = Place.of(run, request.out)
        estimate = None if place.state == "done" else _estimate(run, experiment, place)
        seconds += estimate or 0.0
        unknown += place.state != "done" and estimate is None
        about = f"about {estimate / 60:.0f} min" if estimate is not None else "" if place.state == "done" else "?"
        rows = " = ".join(row.method for row in experiment.rows if run.key in _keys(row))
        lines.append(f"{run.task.name:<20} {rows:<24} seed {run.seed}  {run.key}  {place.state:<8} {about}".rstrip())
    lines += [f"{row.title}: not run: {row.problem}" for row in experiment.rows if row.problem]
    total = f"{len(experiment.runs)} runs; what is left takes about {seconds / 3600:.1f} hours"
    if unknown:
        total += f", and {unknown} runs of which nothing is known yet: --minutes would say how long"
    return "\n".join([*lines, total])


def _keys(row: Row) -> set[str]:
    return {run.key for runs in row.runs.values() for run in runs}


def _estimate(run: Run, experiment: Experiment, place: Place) -> float | None:
    """Seconds that a run still takes: by its budget, or as a finished run of the same method on the same data took."""
    spent = place.cost.get("training", {}).get("seconds") or 0.0
    finished = [
        cost
        for other in experiment.runs
        if other.task.name == run.task.name and other.method == run.method
        for cost in [Place.of(other, experiment.request.out).cost]
        if "test" in cost
    ]
    test = float(np.mean([cost["test"]["seconds"] for cost in finished])) if finished else 0.0
    if place.state == "trained":
        return test
    if run.config.training.minutes is not None:
        return max(0.0, 60 * run.config.training.minutes - spent) + test
    if not finished:
        return None
    return max(0.0, float(np.mean([cost["training"]["seconds"] for cost in finished])) - spent) + test
