"""Executes planned runs: trains, tests and measures each, in this process, on a Ray cluster or as SLURM tasks.

A run continues from its last checkpoint. A failure is written to the run's folder and does not stop the other runs.
All machines must see the same folders of data and runs.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.experiments.planning import Run, shared_plan
from sam2_3dmed.experiments.resource_meter import ResourceUsage, count_flops, hardware, measure_resources
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.inference.workers import limit_threads, ray_cluster
from sam2_3dmed.model.hub import DEFAULT_HUB_ID
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.slurm import SECONDS_BETWEEN_LOOKS, how_it_ended, submit
from sam2_3dmed.run.run_config import CONFIG_FILE
from sam2_3dmed.run.run_folder import MODEL_FILE, SPLIT_FILE, load_model, read_record, read_weights
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.run.train import TrainRequest, test_run, train

RUNS = "runs"
_COST_FILE = "cost.json"
_FAILURE_FILE = "failure.txt"
OnFinished = Callable[[Run], None]
Executor = Callable[[Sequence[Run], Path, OnFinished], None]
"""Executes runs below a folder, and calls `OnFinished` with each that has ended, successfully or not."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStatus:
    """The folder of a planned run, and what is in it."""

    folder: Path

    @classmethod
    def find(cls, run: Run, out: Path) -> RunStatus:
        """The folder that ends in the run's key, also if another table named it."""
        runs = out / RUNS / run.task.name
        return cls(min(runs.glob(f"*-{run.key}"), default=runs / f"{run.method}-seed{run.seed}-{run.key}"))

    @property
    def state(self) -> Literal["missing", "begun", "trained", "done"]:
        """How far the run is: `trained` lacks the test or its measurement."""
        if not (self.folder / MODEL_FILE).is_file():
            return "begun" if (self.folder / CONFIG_FILE).is_file() else "missing"
        return "done" if self.is_scored and "prediction" in self.cost else "trained"

    @property
    def is_scored(self) -> bool:
        """Whether the test cases have been evaluated."""
        return (self.folder / "evaluation" / "summary.json").is_file()

    @property
    def cost(self) -> dict[str, Any]:
        """Measurements so far: `training`, `test`, `prediction`, `hardware`."""
        found = read_json(self.folder / _COST_FILE)
        return {part: value for part, value in found.items() if isinstance(value, list if part == "hardware" else dict)}

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed."""
        path = self.folder / _FAILURE_FILE
        return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else None

    def add_cost(self, **parts: Mapping[str, Any] | Sequence[Any]) -> None:
        """Add measurements."""
        write_text(self.folder / _COST_FILE, json.dumps({**self.cost, **parts}, indent=1) + "\n")

    def fail(self, reason: str, details: str = "") -> None:
        """Write why the run failed. The next attempt deletes this."""
        line = " ".join(reason.split()) or "failed without a message"
        logger.error("%s: failed: %s", self.folder.name, line)
        write_text(self.folder / _FAILURE_FILE, f"{line}\n\n{details or reason}\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. It is empty where there is none, or the file is broken."""
    try:
        return read_object(path)
    except DataError:
        return {}


def execute_run(run: Run, out: Path) -> RunStatus:
    """Do what is missing of a run: training, test, measurements. A run that was stopped is continued."""
    status = RunStatus.find(run, out)
    logger.info("%s, %s, seed %d", run.method, run.task.name, run.seed)
    (status.folder / _FAILURE_FILE).unlink(missing_ok=True)
    try:
        machines, this = status.cost.get("hardware", []), hardware()
        if this not in machines:
            status.add_cost(hardware=[*machines, this])
        if not (status.folder / MODEL_FILE).is_file():
            _train(run, status, out)
        if not status.is_scored:
            with measure_resources() as usage:
                test_run(status.folder, run.task.folder)
            if find_system(run.system).own_process:
                usage.memory_mb = usage.gpu_memory_mb = None
            status.add_cost(test=asdict(usage))
        if "prediction" not in status.cost:
            status.add_cost(prediction=measure_prediction(status.folder, run.task.folder))
    except UserError as error:
        status.fail(str(error))
    except Exception as error:  # a system of others may fail in any way, and the table continues without it
        status.fail(f"{type(error).__name__}: {error}", traceback.format_exc())
    return status


def _train(run: Run, status: RunStatus, out: Path) -> None:
    request = TrainRequest(
        run.task.folder,
        status.folder,
        recipe=run.config,
        weights=DEFAULT_HUB_ID if run.weights == "auto" else run.weights,  # a table is about SAM2's, or fails
        plan=shared_plan(out, run.task, run.config.split),
        resume=(status.folder / CONFIG_FILE).is_file(),
        system=run.system,
    )
    try:
        with measure_resources() as usage:
            train(request)
    finally:
        if (system := find_system(run.system)).own_process:
            usage.memory_mb, usage.gpu_memory_mb = system.training_peaks(status.folder)
        status.add_cost(training=_add_usage(status.cost.get("training", {}), usage))


def _add_usage(before: Mapping[str, Any], usage: ResourceUsage) -> dict[str, Any]:
    """The usage of an interrupted run and of its continuation: sums of seconds and energy, peaks of memory."""
    added = {}
    for name, value in asdict(usage).items():
        known = [part for part in (before.get(name), value) if part is not None]
        total = sum if name in ("seconds", "energy_kj") else max
        added[name] = total(known) if known else None
    return added


def measure_prediction(folder: Path, data: Path) -> dict[str, Any]:
    """Measure a run's parameters, and the prediction of its first test case without reading it.

    Seconds, memory and energy are of a second pass.
    """
    (case,) = read_dataset(data).subset(Split.read(folder / SPLIT_FILE).test[:1]).cases
    volume, label = read_case(case)
    record = read_record(folder)
    system, reference = find_system(record.system), label if record.needs_reference else None
    predictor = load_model(folder)
    if system.own_process:
        gflop, *memory = system.prediction_cost(predictor, volume)
    else:
        with count_flops() as counter:
            predictor(volume, reference=reference)
        gflop = counter.get_total_flops() / 1e9
    with measure_resources() as usage:
        predictor(volume, reference=reference)
    if system.own_process:
        usage.memory_mb, usage.gpu_memory_mb = memory
    return {
        "case": case.name,
        "voxels": math.prod(volume.array.shape[:3]),
        "parameters": num_parameters(folder / MODEL_FILE),
        "gflop": gflop,
        **asdict(usage),
    }


def num_parameters(model: Path) -> int:
    """Numbers in a file of weights, buffers included."""
    return sum(tensor.numel() for tensor in read_weights(model).values())


def run_sequentially(runs: Sequence[Run], out: Path, on_finished: OnFinished) -> None:
    """Execute runs in this process."""
    for run in runs:
        execute_run(run, out)
        on_finished(run)


def run_on_slurm(runs: Sequence[Run], out: Path, on_finished: OnFinished, *, options: Mapping[str, Any]) -> None:
    """Execute each run as a SLURM task and wait. Interrupting the wait does not stop the tasks. See `submit`."""
    out = out.resolve()
    tasks = submit([partial(execute_run, run, out) for run in runs], out, options)
    from submitit.helpers import as_completed

    for task in as_completed(tasks, poll_frequency=SECONDS_BETWEEN_LOOKS):
        run = runs[tasks.index(task)]
        if task.exception() is not None:
            _fail_unless_done(run, out, how_it_ended(task))
        on_finished(run)


def run_on_ray(runs: Sequence[Run], out: Path, on_finished: OnFinished, *, workers: int) -> None:
    """Execute `workers` runs at a time on a Ray cluster, each on a GPU if there is any. See `ray_cluster`."""
    out = out.resolve()
    with ray_cluster(workers) as (threads, gpus):
        import ray

        job = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_execute_with)
        waiting = {job.remote(threads, partial(execute_run, run, out)): run for run in runs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(done)
            try:
                ray.get(done)
            except Exception as error:  # Ray's error for a process that died, or the run's own
                _fail_unless_done(run, out, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
            on_finished(run)


def _execute_with(threads: int, execute: Callable[[], RunStatus]) -> None:
    limit_threads(threads)
    execute()


def _fail_unless_done(run: Run, out: Path, reason: str) -> None:
    status = RunStatus.find(run, out)
    if status.state != "done":
        status.fail(reason)
