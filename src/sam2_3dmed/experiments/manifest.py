"""manifest.json of a table: data with checksums, split, versions, seeds, hardware, hours."""

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.errors import UserError
from sam2_3dmed.experiments.planning import Experiment, Run
from sam2_3dmed.experiments.resource_meter import hardware
from sam2_3dmed.experiments.run_executor import RunStatus, read_json
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.run.run_folder import SPLIT_FILE, read_record

_PACKAGES = ("sam2-3dmed", "torch", "transformers", "lightning", "monai", "numpy", "scipy")


def write_manifest(experiment: Experiment, folder: Path) -> None:
    """Write manifest.json."""
    write_text(folder / "manifest.json", json.dumps(manifest(experiment), indent=1, ensure_ascii=False) + "\n")


def manifest(experiment: Experiment) -> dict[str, Any]:
    """Describe an experiment in values for JSON. Versions and hardware are of this process; each run has its own."""
    request = experiment.request
    asked = {name: value for name, value in asdict(request).items() if name not in ("table", "data", "out")}
    checksums = data_checksums(experiment)
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
                "split": _split(experiment, task.name),
            }
            for task in experiment.tasks
        },
        "versions": installed,
        "hardware": hardware(),
        "runs": [_describe_run(run, request.out) for run in experiment.runs],
    }


def _split(experiment: Experiment, task: str) -> dict[str, Any] | None:
    """The split of the first run that has one; all runs of a table share it."""
    runs = (run for run in experiment.runs if run.task.name == task)
    splits = (read_json(RunStatus.find(run, experiment.request.out).folder / SPLIT_FILE) for run in runs)
    return next(filter(None, splits), None)


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
            for file in filter(None, (*case.images, case.label)):
                stamp = [file.stat().st_size, file.stat().st_mtime_ns]
                entry = known.get(str(file), {})
                if entry.get("stamp") != stamp:
                    with file.open("rb") as stream:
                        entry = {"stamp": stamp, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
                current[str(file)] = entry
                found[task.name][file.relative_to(task.folder).as_posix()] = entry["sha256"]
    if current != known:
        write_text(path, json.dumps({**known, **current}, indent=0) + "\n")
    return found
