"""What a table was made of: data with checksums, split, versions, seeds, hardware, hours."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import UserError
from sam2_3dmed.experiments.hardware import hardware
from sam2_3dmed.experiments.planning import Experiment, Run
from sam2_3dmed.experiments.run_executor import Place
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.train import SPLIT_FILE

CHECKSUMS_FILE = "checksums.json"
_PACKAGES = ("sam2-3dmed", "torch", "transformers", "lightning", "monai", "numpy", "scipy")


def manifest(experiment: Experiment) -> dict[str, Any]:
    """Only what JSON can hold. Versions and hardware: here, where the table is written; each run has its own."""
    request = experiment.request
    sums = data_checksums(experiment)
    return {
        "table": request.table,
        "paper": "arXiv 2510.08967v1",
        "asked": {
            "tasks": list(request.tasks),
            "methods": list(request.methods),
            "recipe": request.recipe,
            "weights": request.weights,
            "settings": list(request.settings),
            "patch_settings": list(request.patch_settings),
            "seeds": request.seeds,
            "minutes": request.minutes,
            "epochs": request.epochs,
        },
        "data": {
            task.name: {
                "folder": str(task.folder),
                "files_sha256": sums[task.name],
                "split": _split(experiment, task.name),
            }
            for task in experiment.tasks
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": hardware(),
        "runs": [_run(run, request.out) for run in experiment.runs],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _split(experiment: Experiment, task: str) -> dict[str, list[str]] | None:
    """Of the first run that has one; all runs of a table share it."""
    for run in experiment.runs:
        path = Place.of(run, experiment.request.out).folder / SPLIT_FILE
        if run.task.name == task and path.is_file():
            split = Split.read(path)
            return {part: list(getattr(split, part)) for part in ("train", "validation", "test")}
    return None


def _run(run: Run, out: Path) -> dict[str, Any]:
    place = Place.of(run, out)
    cost = place.cost
    machines = cost.pop("hardware", [])
    seconds = sum(cost.get(part, {}).get("seconds") or 0.0 for part in ("training", "test"))
    return {
        "key": run.key,
        "folder": str(place.folder),
        "method": run.method,
        "system": run.system,
        "task": run.task.name,
        "seed": run.seed,
        "weights": run.weights,
        "state": place.state,
        "failure": None if place.state == "done" else place.failure,
        "hours": seconds / 3600,
        "versions": _versions_of(place.folder),
        "hardware": machines,
        "cost": cost,
    }


def _versions_of(folder: Path) -> dict[str, str] | None:
    """Those that a run was begun with."""
    try:
        return RunRecord.read(folder).versions
    except UserError:
        return None


def data_checksums(experiment: Experiment) -> dict[str, dict[str, str]]:
    """SHA-256 of every labelled file of every task; read again only where size or date have changed."""
    path = experiment.request.out / CHECKSUMS_FILE
    known = _known(path)
    found: dict[str, dict[str, str]] = {}
    now: dict[str, dict[str, Any]] = {}
    for task in experiment.tasks:
        files = [f for case in read_dataset(task.folder).cases for f in (*case.images, case.label) if f is not None]
        found[task.name] = {}
        for file in files:
            status = file.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            entry = known.get(str(file))
            if not entry or entry.get("stamp") != stamp:
                with file.open("rb") as opened:
                    entry = {"stamp": stamp, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
            now[str(file)] = dict(entry)
            found[task.name][file.relative_to(task.folder).as_posix()] = entry["sha256"]
    if now != known:
        write_text(path, json.dumps({**known, **now}, indent=0) + "\n")
    return found


def _known(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_manifest(experiment: Experiment, folder: Path) -> None:
    """Write manifest.json.

    Raises:
        DataError: it cannot be written.
    """
    write_text(folder / "manifest.json", json.dumps(manifest(experiment), indent=1, ensure_ascii=False) + "\n")
