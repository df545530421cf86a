"""The steps of the `reproduce` command: runs, tables, manifest.json, and the estimate of a dry run."""

import json
import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.errors import UserError
from sam2_3dmed.experiments.planning import Experiment, ReproduceRequest, Run, plan_experiment, shared_plan
from sam2_3dmed.experiments.resource_meter import hardware
from sam2_3dmed.experiments.run_executor import RUNS, Executor, RunStatus, read_json, run_sequentially
from sam2_3dmed.experiments.tables import TaskTable, latex, markdown, table_csv, task_table
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.journal import checksum
from sam2_3dmed.report.charts import cost_chart, save_figure
from sam2_3dmed.run.run_folder import SPLIT_FILE, read_record

_PACKAGES = ("sam2-3dmed", "torch", "transformers", "lightning", "monai", "numpy", "scipy")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """The folder and text of a table, and for each failed run its folder and the reason."""

    folder: Path
    text: str
    failures: tuple[tuple[Path, str], ...]


def reproduce(request: ReproduceRequest, execute: Executor = run_sequentially) -> Reproduction:
    """Execute the unfinished runs of a table, and write the table after each. The next call continues a stopped one.

    Raises UserError as `plan_experiment`.
    """
    experiment = plan_experiment(request)
    folder = request.out / f"table_{request.table}"
    missing = [run for run in experiment.runs if RunStatus.find(run, request.out).state != "done"]
    for run in missing:  # before parallel jobs would make the same file
        shared_plan(request.out, run.task, run.config.split)

    def on_finished(run: Run) -> None:
        state = RunStatus.find(run, request.out).state
        logger.info("%s, %s, seed %d: %s", run.method, run.task.name, run.seed, state)
        _write_table(experiment, folder)

    if missing:
        logger.info("%d of %d runs are to be carried out", len(missing), len(experiment.runs))
        execute(missing, request.out, on_finished)
    text = _write_table(experiment, folder)
    ended = [RunStatus.find(run, request.out) for run in experiment.runs]
    return Reproduction(folder, text, tuple((run.folder, run.failure) for run in ended if run.failure))


def _write_table(experiment: Experiment, folder: Path) -> str:
    """Write all files of a table, and a chart of each data set with two measured rows. Returns: the Markdown."""
    tables = [task_table(experiment, task) for task in experiment.tasks]
    charts = {table.task.name: chart for table in tables if (chart := _draw_costs(table, folder))}
    text = markdown(experiment.paper, tables, charts)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", table_csv(experiment.paper, tables))
    write_text(folder / "table.tex", latex(experiment.paper, tables))
    write_manifest(experiment, folder)
    return text


def _draw_costs(table: TaskTable, folder: Path) -> str | None:
    """Returns: the chart's file name, if there are points to compare."""
    points = {
        row.title: (row.cost["gflop"], row.cells["dice"].ours, row.cells["dice"].interval, row.cost["parameters"])
        for row in table.rows
        if row.cells["dice"].ours is not None and row.cost["gflop"]
    }
    if len(points) < 2:
        return None
    chart = cost_chart(f"{table.task.name}: accuracy and cost", points, "GFLOP a volume", "mean Dice")
    name = f"accuracy_and_cost_{table.task.name}"
    save_figure(chart, folder, name)
    return f"{name}.png"


class _Estimate(NamedTuple):
    """Seconds that a run still needs. rough: estimated from runs on other data or with other settings."""

    seconds: float
    rough: bool = False


def describe(request: ReproduceRequest) -> str:
    """List the runs of a table, their state, and how long they would take as far as that can be estimated."""
    experiment = plan_experiment(request)
    lines: list[str] = []
    left: list[_Estimate | None] = []
    for run in experiment.runs:
        status = RunStatus.find(run, request.out)
        needs = ""
        if status.state != "done":
            left.append(estimate := _estimate(run, experiment, status))
            needs = f"about {estimate.seconds / 60:.0f} min{', rough' if estimate.rough else ''}" if estimate else "?"
        keys = {row.method: {one.key for one in row.runs.get(run.task.name, ())} for row in experiment.rows}
        rows = " = ".join(method for method, own in keys.items() if run.key in own)
        lines.append(f"{run.task.name:<20} {rows:<24} seed {run.seed}  {run.key}  {status.state:<8} {needs}".rstrip())
    lines += [f"{row.title}: not run: {row.problem}" for row in experiment.rows if row.problem]
    return "\n".join([*lines, f"{len(experiment.runs)} runs; {_total(left, request)}"])


def _total(left: Sequence[_Estimate | None], request: ReproduceRequest) -> str:
    known = [estimate for estimate in left if estimate is not None]
    parts = []
    if known:
        rough = " (rough: by runs on other data or with other settings)" if any(one.rough for one in known) else ""
        hours = sum(one.seconds for one in known) / 3600
        about = f"about {hours:.1f}" if hours >= 0.05 else "less than 0.1"
        parts.append(f"what is left takes {about} hours{rough}")
    if unknown := left.count(None):
        set_it = ", or --minutes sets it" if request.minutes is None else ""
        parts.append(f"of {unknown} nothing is known yet: a finished run of the row tells how long it takes{set_it}")
    return ", and ".join(parts) or "all are done"


def _estimate(run: Run, experiment: Experiment, status: RunStatus) -> _Estimate | None:
    """From the run's budget, else from finished runs of the method, on the same data if there are any."""
    out = experiment.request.out
    alike = (one for one in experiment.runs if (one.task.name, one.method) == (run.task.name, run.method))
    same = [seconds for one in alike if (seconds := _seconds(RunStatus.find(one, out)))]
    spent = status.cost.get("training", {}).get("seconds") or 0.0
    minutes = run.config.training.minutes
    if minutes is not None and status.state != "trained":
        return _Estimate(max(0.0, 60 * minutes - spent) + (float(np.mean(same, axis=0)[1]) if same else 0.0))
    known = same or _seconds_elsewhere(run, out)
    if not known:
        return None
    training, test = np.mean(known, axis=0).tolist()
    return _Estimate((0.0 if status.state == "trained" else max(0.0, training - spent)) + test, rough=not same)


def _seconds(status: RunStatus) -> tuple[float, float] | None:
    """Seconds of training and test, if both were measured."""
    cost = status.cost
    return (cost["training"]["seconds"], cost["test"]["seconds"]) if {"training", "test"} <= cost.keys() else None


def _seconds_elsewhere(run: Run, out: Path) -> list[tuple[float, float]]:
    """Seconds of training, scaled to this run's epochs, and of the test, of the method's finished runs with other data
    or settings. Runs with a budget of minutes are left out, since their time depends on no number of epochs."""
    found = []
    for status in map(RunStatus, sorted((out / RUNS).glob(f"*/{run.method}-seed*"))):
        if status.state != "done" or not (seconds := _seconds(status)):
            continue
        with suppress(UserError):
            training = read_record(status.folder).recipe.training
            if training.minutes is None:
                found.append((run.config.training.epochs / training.epochs * seconds[0], seconds[1]))
    return found


def write_manifest(experiment: Experiment, folder: Path) -> None:
    """Write manifest.json."""
    write_text(folder / "manifest.json", json.dumps(manifest(experiment), indent=1, ensure_ascii=False) + "\n")


def manifest(experiment: Experiment) -> dict[str, Any]:
    """Describe an experiment in values for JSON. Versions and hardware are of this process; each run has its own."""
    request = experiment.request
    asked = {name: value for name, value in asdict(request).items() if name not in ("table", "data", "out")}
    checksums = data_checksums(experiment)
    splits: dict[str, Any] = {}  # of the first run that has one; all runs of a table share it
    for run in experiment.runs:
        split = read_json(RunStatus.find(run, request.out).folder / SPLIT_FILE)
        splits[run.task.name] = splits.get(run.task.name) or split or None
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return {
        "table": request.table,
        "paper": "arXiv 2510.08967v1",
        "asked": {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()},
        "data": {
            task.name: {
                "folder": str(task.folder),
                "files_sha256": checksums[task.name],
                "split": splits.get(task.name),
            }
            for task in experiment.tasks
        },
        "versions": installed,
        "hardware": hardware(),
        "runs": [_describe_run(run, request.out) for run in experiment.runs],
    }


def _describe_run(run: Run, out: Path) -> dict[str, Any]:
    status = RunStatus.find(run, out)
    cost = status.cost
    machines = cost.pop("hardware", [])
    seconds = sum(cost.get(part, {}).get("seconds") or 0.0 for part in ("training", "test"))
    try:
        versions = read_record(status.folder).versions
    except UserError:  # not started
        versions = None
    return {
        "key": run.key,
        "folder": str(status.folder),
        "method": run.method,
        "system": run.system,
        "task": run.task.name,
        "seed": run.seed,
        "weights": run.weights,
        "state": status.state,
        "failure": status.failure,
        "hours": seconds / 3600,
        "versions": versions,
        "hardware": machines,
        "cost": cost,
    }


def data_checksums(experiment: Experiment) -> dict[str, dict[str, str]]:
    """SHA-256 of every labelled file of every task. Only files whose size or date have changed are read again."""
    path = experiment.request.out / "checksums.json"
    known = read_json(path)
    current: dict[str, Any] = {}
    found: dict[str, dict[str, str]] = {task.name: {} for task in experiment.tasks}
    for task in experiment.tasks:
        for case in read_dataset(task.folder).cases:
            for file in case.files:
                stamp = [file.stat().st_size, file.stat().st_mtime_ns]
                entry = known.get(str(file), {})
                if entry.get("stamp") != stamp:
                    entry = {"stamp": stamp, "sha256": checksum([file])}
                current[str(file)] = entry
                found[task.name][file.relative_to(task.folder).as_posix()] = entry["sha256"]
    if current != known:
        write_text(path, json.dumps({**known, **current}, indent=0) + "\n")
    return found
