"""Tables 1 to 9 of the paper as printed, the methods of their rows, and the runs behind a table.

A run is a system with its recipe and budget, a data set and a seed; its key is a hash of this content, so that tables
share runs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from sam2_3dmed.config import ABLATIONS, BASELINES, RunConfig, SplitConfig, read_recipe, with_settings
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.plan import read_plan_yaml, write_plan_yaml
from sam2_3dmed.errors import ConfigError, DataError, suggest
from sam2_3dmed.run.systems import OURS, find_system, system_names
from sam2_3dmed.run.train import choose_split_and_plan

METRICS = ("dice", "iou", "hd95", "nsd")
"""The metrics of every cell in the paper's order. The paper states neither HD95's unit nor NSD's tolerance."""
TASKS = {"lung": "Task06_Lung", "spleen": "Task09_Spleen", "pancreas": "Task07_Pancreas"}
"""The paper's data sets, with their folders in the Decathlon."""
SLAB_SLICES = {"lung": 6, "spleen": 12, "pancreas": 12}
"""D (appendix B)."""
FULL = "full"
"""The complete method, which every other row is compared with."""

_METHODS = {
    "SAM2 (fine-tuned)": "sam2",
    "MedSAM-2": "medsam2",
    "nnU-Net": "nnunet",
    "Universal-Model": "universal",
    "nnFormer": "nnformer",
    "MedNeXt": "mednext_l",  # the paper names no size; its authors report their best results with the largest
    "w/o Pre-train": "without_pretraining",
    "w/o SRPP": "without_srpp",
    "w/o BD": "without_boundary",
    "w/o BD-Fusion": "without_boundary_fusion",
    "w/ SRPP memory": "with_srpp_memory",
    "3 slices": "slices_3",
    "6 slices": "slices_6",
    "12 slices": "slices_12",
    "lambda1=0.01, lambda2=0.1": FULL,
    "lambda1=0.01, lambda2=0.3": "boundary_weight_0.3",
    "lambda1=0.01, lambda2=0.5": "boundary_weight_0.5",
    "lambda1=0.03, lambda2=0.1": "srpp_weight_0.03",
    "lambda1=0.05, lambda2=0.1": "srpp_weight_0.05",
    "SAM2-3dMed": FULL,  # below its other name, so that this one is its title in other tables
}
"""The paper's name of a row -> the method that we run for it."""
_TITLES = {"medsam2_boxes": "MedSAM-2, boxes from the reference", **{name: row for row, name in _METHODS.items()}}
_CAVEATS = {
    "medsam2_boxes": "gets boxes from the reference on every second slice that has a class",
    "universal": "learnt from this data set alone; the published figures are of one model for 14 data sets",
}


@dataclass(frozen=True)
class PaperTable:
    """A table as printed. values: row -> task -> metric -> number."""

    number: int
    title: str
    values: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a column."""
        return tuple(dict.fromkeys(task for row in self.values.values() for task in row))


@cache
def paper_table(number: int) -> PaperTable:
    """Load one of the tables. Raises ConfigError if the paper has no such table."""
    tables = json.loads((files("sam2_3dmed.experiments") / "paper_tables.json").read_text(encoding="utf-8"))["tables"]
    if str(number) not in tables:
        raise ConfigError(f"the paper has no table {number}; it has {', '.join(tables)}")
    table = tables[str(number)]
    return PaperTable(number, table["title"], table["rows"])


@dataclass(frozen=True)
class Method:
    """What a row of a table runs.

    Attributes:
        change: What it changes in our recipe, a name in ABLATIONS or BASELINES.
        caveat: How it differs from the published system, for a note below each table.
    """

    title: str
    system: str = OURS
    change: str | None = None
    caveat: str = ""


def method_names() -> list[str]:
    """Every method that can be run, for `--methods`."""
    return [FULL, *ABLATIONS, *BASELINES, *(name for name in system_names() if name != OURS)]


def find_method(name: str) -> Method:
    """The method of this name. Raises ConfigError if there is none, or its system cannot be loaded."""
    if name not in method_names():
        raise ConfigError(f"no method {name!r}; {suggest(name, method_names())}")
    caveat = _CAVEATS.get(name, "")
    if name in (FULL, *ABLATIONS, *BASELINES):
        change = None if name == FULL else name
        return Method(_TITLES.get(name, name.replace("_", " ")), change=change, caveat=caveat)
    return Method(find_system(name).title, name, caveat=caveat)


def select_rows(table: int, methods: Sequence[str] = ()) -> dict[str, str]:
    """The methods to run for a table, its own without any others: method -> title of its row."""
    rows = {_METHODS[title]: title for title in paper_table(table).values}
    return {name: rows.get(name, find_method(name).title) for name in methods or rows}


@dataclass(frozen=True)
class ReproduceRequest:
    """The arguments of `reproduce`, which are the options of the command."""

    table: int
    data: Path
    out: Path
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int = 1
    recipe: str = "auto"
    weights: str = "auto"
    settings: tuple[str, ...] = ()
    patch_settings: tuple[str, ...] = ()
    minutes: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and self.epochs is not None:
            raise ConfigError("--minutes and --epochs both say how long to train; give one of them")
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds}: at least 1")

    @property
    def budget(self) -> tuple[str, ...]:
        """The training budget as settings."""
        if self.minutes is not None:
            return (f"training.minutes={self.minutes}",)
        return () if self.epochs is None else (f"training.epochs={self.epochs}", "training.minutes=none")


@dataclass(frozen=True)
class Task:
    """A data set of a table. column: its name in the paper, None if the paper does not have it."""

    name: str
    folder: Path
    column: str | None

    @cached_property
    def checksum(self) -> str:
        """Checksum of the names and sizes of the labelled cases: cheap, and enough to tell data sets apart."""
        cases = [(case.name, case.num_bytes) for case in read_dataset(self.folder).cases]
        return hashlib.sha256(json.dumps(cases).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One training with its test."""

    method: str
    system: str
    task: Task
    seed: int
    config: Any
    weights: str

    @cached_property
    def key(self) -> str:
        """Hash of the content: equal for equal runs, whichever row of whichever table has them."""
        config = self.config.model_dump(mode="json")
        if isinstance(self.config, RunConfig) and config["training"]["encoder"] == "auto":
            # Resolved here, so that with --weights none the row without pre-training is the full method.
            config["training"]["encoder"] = "train" if self.weights == "none" else "frozen"
        return _hash({"system": self.system, "weights": self.weights, "data": self.task.checksum, "config": config})


@dataclass(frozen=True)
class Row:
    """A row of a table. runs: by task name, one per seed; problem: why the row cannot run."""

    method: str
    title: str
    runs: Mapping[str, tuple[Run, ...]]
    problem: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A table with all its runs. full: task -> the runs of the complete method, requested or not."""

    request: ReproduceRequest
    paper: PaperTable
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    full: Mapping[str, tuple[Run, ...]]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run once: task by task, and one seed of all rows before the next seed."""
        by_key: dict[str, Run] = {}
        for task in self.tasks:
            for of_one_seed in zip(*(row.runs[task.name] for row in self.rows if row.runs), strict=True):
                for run in of_one_seed:
                    by_key.setdefault(run.key, run)
        return tuple(by_key.values())


def plan_experiment(request: ReproduceRequest) -> Experiment:
    """Plan the runs of a table. Raises UserError for an unknown table, task, method or setting, or without data."""
    paper = paper_table(request.table)
    titles = select_rows(request.table, request.methods)
    names = request.tasks or ((".",) if _is_data_set(request.data) else paper.tasks)
    tasks = tuple(_find_task(request.data, name) for name in names)
    preset, *changes = request.recipe.split("+")
    if preset == "auto":  # the paper's network in either case
        preset = "paper_scratch" if request.weights == "none" else "paper"
    base = read_recipe("+".join([preset, *changes]), from_scratch=request.weights == "none")
    base = with_settings(base, [*request.settings, *request.budget])
    rows = tuple(_plan_row(request, name, title, tasks, base) for name, title in titles.items())
    full = {task.name: _plan_runs(request, FULL, task, base) for task in tasks}
    return Experiment(request, paper, tasks, rows, full)


def shared_plan(out: Path, task: Task, split: SplitConfig) -> Path:
    """The plan file that all runs on a data set share, so that no run reads the whole data set again.

    It is made from the training cases alone, as in training, and only if the file does not exist.
    """
    path = out / "plans" / f"{task.folder.name}-{_hash([task.checksum, split.model_dump()])}.yaml"
    if not path.is_file():
        write_plan_yaml(choose_split_and_plan(read_dataset(task.folder), split)[1], path)
    return path


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _find_task(data: Path, name: str) -> Task:
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    folder = data / TASKS.get(name, name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --tasks chooses others")
    if not _is_data_set(folder):
        raise DataError(f"{folder}: not a data set; --tasks names folders in {data}")
    folder = folder.resolve()
    column = next((paper for paper, own in TASKS.items() if own == folder.name), None)
    return Task(column or folder.name, folder, column)


def _is_data_set(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("dataset.json", "images", "imagesTr"))


def _plan_row(request: ReproduceRequest, name: str, title: str, tasks: Sequence[Task], base: RunConfig) -> Row:
    try:
        find_system(find_method(name).system).require()
    except ConfigError as error:
        return Row(name, title, {}, str(error))
    return Row(name, title, {task.name: _plan_runs(request, name, task, base) for task in tasks})


def _plan_runs(request: ReproduceRequest, name: str, task: Task, base: RunConfig) -> tuple[Run, ...]:
    method = find_method(name)
    config: Any = base
    if method.system == OURS:
        weights = "none" if method.change == "without_pretraining" else request.weights
        if config.slab_slices is None:  # D of the paper or of the plan: its row in the table is the complete method
            of_paper = SLAB_SLICES.get(task.column or "")
            slab_slices = of_paper or read_plan_yaml(shared_plan(request.out, task, base.split)).slab_slices
            config = config.model_copy(update={"slab_slices": slab_slices})
        if method.change:
            config = {**ABLATIONS, **BASELINES}[method.change](config)
    else:
        # A system's own recipe, with our split.
        weights, system = "none", find_system(method.system)
        settings = [f"split.{key}={value}" for key, value in base.split.model_dump().items()]
        if system.learns_from_patches:
            settings += _patch_settings(request.patch_settings, system.name)
        config = system.recipe(settings=[*settings, *request.budget])
    first = config.training.seed
    return tuple(
        Run(name, method.system, task, seed, with_settings(config, [f"training.seed={seed}"]), weights)
        for seed in range(first, first + request.seeds)
    )


def _patch_settings(given: Sequence[str], system: str) -> list[str]:
    """The settings of a system: plain ones, and those that begin with its name and a colon."""
    settings = []
    for text in given:
        name, colon, setting = text.partition(":")
        if not colon or "=" in name:
            settings.append(text)
        elif name == system:
            settings.append(setting)
        elif not find_system(name).learns_from_patches:
            raise ConfigError(f"--set-patches {text}: {name} does not learn from patches")
    return settings
