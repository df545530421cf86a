"""Runs carried out: trained, tested and measured, each from where it was left; what fails is told, not raised."""

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sam2_3dmed.baselines.nnunet.run import training_peaks
from sam2_3dmed.baselines.systems import NNUNET
from sam2_3dmed.errors import UserError
from sam2_3dmed.experiments.cost import prediction_cost
from sam2_3dmed.experiments.hardware import hardware
from sam2_3dmed.experiments.planning import Run
from sam2_3dmed.experiments.plans import plan_file
from sam2_3dmed.experiments.resource_meter import Usage, metered
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.run.run_config import CONFIG_FILE
from sam2_3dmed.run.run_folder import MODEL_FILE
from sam2_3dmed.run.train import TrainRequest, test_run, train_run

RUNS = "runs"
COST_FILE = "cost.json"
FAILURE_FILE = "failure.txt"
State = Literal["missing", "begun", "trained", "done"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a run's folder is, and what is in it."""

    folder: Path

    @classmethod
    def of(cls, run: Run, out: Path) -> "Place":
        """A folder that ends in the run's key, under whatever name an earlier table gave it."""
        runs = out / RUNS / run.task.name
        found = next(iter(sorted(runs.glob(f"*-{run.key}"))), None)
        return cls(found or runs / f"{run.method}-seed{run.seed}-{run.key}")

    @property
    def state(self) -> State:
        """How far it is."""
        if not (self.folder / MODEL_FILE).is_file():
            return "begun" if (self.folder / CONFIG_FILE).is_file() else "missing"
        scored = (self.folder / "evaluation" / "summary.json").is_file()
        return "done" if scored and "prediction" in self.cost else "trained"

    @property
    def cost(self) -> dict[str, Any]:
        """What was measured so far."""
        try:
            content = json.loads((self.folder / COST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed."""
        path = self.folder / FAILURE_FILE
        return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else None

    def note(self, **parts: Mapping[str, Any] | Sequence[Any]) -> None:
        """Add to what was measured."""
        write_text(self.folder / COST_FILE, json.dumps({**self.cost, **parts}, indent=1) + "\n")

    def note_machine(self) -> None:
        """Add this machine to those that the run was on, unless it was."""
        machines, this = self.cost.get("hardware", []), hardware()
        if this not in machines:
            self.note(hardware=[*machines, this])


def carry_out(run: Run, out: Path) -> Place:
    """Train, test and measure a run as far as that is not done yet.

    A run that fails leaves the reason in its folder, and the next attempt goes on from its last checkpoint.

    Raises:
        Terminated: SIGTERM came. KeyboardInterrupt: the user stopped it. The next attempt goes on from there.
    """
    place = Place.of(run, out)
    if place.state == "done":
        return place
    logger.info("%s, %s, seed %d", run.method, run.task.name, run.seed)
    (place.folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        place.note_machine()
        _train(run, place, out)
        if not (place.folder / "evaluation" / "summary.json").is_file():
            with metered() as usage:
                test_run(place.folder, run.task.folder)
            if run.system == NNUNET:  # it predicts in a process of its own
                usage.memory_mb = usage.gpu_memory_mb = None
            place.note(test=asdict(usage))
        if "prediction" not in place.cost:
            place.note(prediction=prediction_cost(place.folder, run.task.folder))
    except UserError as error:
        note_failure(place, str(error))
    except Exception as error:  # other people's systems may fail in any way, and the table goes on without them
        note_failure(place, f"{type(error).__name__}: {error}", traceback.format_exc())
    return place


def _train(run: Run, place: Place, out: Path) -> None:
    if (place.folder / MODEL_FILE).is_file():
        return
    request = TrainRequest(
        run.task.folder,
        place.folder,
        config=run.config,
        weights=run.weights,
        plan=plan_file(out, run.task.folder, run.task.content, run.config.split),
        resume=(place.folder / CONFIG_FILE).is_file(),
        system=run.system,
    )
    usage = Usage()
    try:
        with metered() as usage:
            train_run(request)
    finally:
        if run.system == NNUNET:  # it trains in a process of its own
            usage.memory_mb, usage.gpu_memory_mb = training_peaks(place.folder)
        if place.folder.is_dir():
            place.note(training=_added(place.cost.get("training"), usage))


def _added(before: Mapping[str, Any] | None, usage: Usage) -> dict[str, Any]:
    """An interrupted run's usage and what came after: sums of times and energy, the highest memory."""
    after = asdict(usage)
    if not before:
        return after
    sums = {"seconds", "energy_kj"}
    both = {name: [v for v in (before.get(name), after[name]) if v is not None] for name in after}
    return {name: (sum(known) if name in sums else max(known)) if known else None for name, known in both.items()}


def note_failure(place: Place, reason: str, details: str = "") -> None:
    """Write why a run failed; it goes when the run is tried again."""
    line = " ".join(reason.split()) or "failed without a word"
    logger.error("%s: failed: %s", place.folder.name, line)
    write_text(place.folder / FAILURE_FILE, f"{line}\n\n{details or reason}\n")
