"""Which runs a table takes: a run is a system with its recipe and budget, a data set and a seed, known by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.baselines.systems import PATCH_SYSTEMS, require_system
from sam2_3dmed.config import ABLATIONS, BASELINES, RunConfig, SplitConfig, read_recipe, with_settings
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.plan import read_plan_yaml
from sam2_3dmed.errors import ConfigError, DataError, suggest
from sam2_3dmed.experiments.methods import FULL, METHODS, rows_of
from sam2_3dmed.experiments.paper import TASKS, PaperTable, paper_table
from sam2_3dmed.experiments.plans import plan_file

if TYPE_CHECKING:
    from sam2_3dmed.baselines.recipes import SystemConfig


@dataclass(frozen=True)
class Request:
    """What `reproduce` is asked for.

    data: the folder of the data sets, or one of them; tasks: names of the paper's (lung, spleen, pancreas) or of
    folders below `data`, none for those of the table; methods: see `rows_of`; seeds: how many runs of each, numbered
    from 0; recipe, weights, settings: of all rows with our network, as for `train`; patch_settings: of the systems that
    learn from patches; minutes, epochs: of every run.
    """

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

    @property
    def budget(self) -> tuple[str, ...]:
        """As settings."""
        if self.minutes is not None:
            return (f"training.minutes={self.minutes}",)
        return () if self.epochs is None else (f"training.epochs={self.epochs}", "training.minutes=none")


@dataclass(frozen=True)
class Task:
    """A data set of a table. column: the paper's name of it, none if it is not one of the paper's."""

    name: str
    folder: Path
    column: str | None

    @cached_property
    def content(self) -> str:
        """A checksum of the names and sizes of its labelled cases: cheap, so that runs are told apart by it."""
        cases = [(case.name, case.num_bytes) for case in read_dataset(self.folder).cases]
        return hashlib.sha256(json.dumps(cases).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One training with its test."""

    method: str
    system: str
    task: Task
    seed: int
    config: "RunConfig | SystemConfig"
    weights: str

    @property
    def of_ours(self) -> bool:
        """Whether it has our network."""
        return METHODS[self.method].of_ours

    @cached_property
    def key(self) -> str:
        """The same for runs of the same content, whichever row of whichever table asks for them."""
        config = self.config.model_dump(mode="json")
        if isinstance(self.config, RunConfig) and config["model"]["train_encoder"] is None:
            # What is left to the weights; said, a row without pre-training is the full one where all start from none.
            config["model"]["train_encoder"] = self.weights == "none" and config["model"]["adapt"] is None
        meaning = {"system": self.system, "weights": self.weights, "data": self.task.content, "config": config}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Row:
    """A row of a table. runs: by task name, one a seed; problem: why it cannot be run."""

    method: str
    title: str
    runs: Mapping[str, tuple[Run, ...]]
    problem: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A table with all runs that it takes. full: task -> the runs of the whole method, asked for or not."""

    request: Request
    paper: PaperTable
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    full: Mapping[str, tuple[Run, ...]]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Each once, task by task, a seed of all rows before the next seed."""
        of_rows = [row.runs for row in self.rows]
        ordered = [
            runs[task.name][number]
            for task in self.tasks
            for number in range(self.request.seeds)
            for runs in of_rows
            if task.name in runs
        ]
        return tuple({run.key: run for run in reversed(ordered)}[key] for key in dict.fromkeys(r.key for r in ordered))


def plan_experiment(request: Request) -> Experiment:
    """The runs that a table takes.

    Raises:
        UserError: no such table, task, method or setting, or no data.
    """
    _check(request)
    paper = paper_table(request.table)
    titles = rows_of(request.table, request.methods)
    tasks = tuple(_task(request, name) for name in request.tasks or _default_tasks(request, paper))
    base = with_settings(
        read_recipe(request.recipe, from_scratch=request.weights == "none"), [*request.settings, *request.budget]
    )
    rows = tuple(_row(request, name, title, tasks, base) for name, title in titles.items())
    full = {task.name: _runs(request, FULL, task, base) for task in tasks}
    return Experiment(request, paper, tasks, rows, full)


def _default_tasks(request: Request, paper: PaperTable) -> Sequence[str]:
    return (".",) if _is_data_set(request.data) else paper.tasks


def _task(request: Request, name: str) -> Task:
    known = TASKS.get(name)
    folder = request.data if name == "." else request.data / (known.folder if known else name)
    if not request.data.is_dir():
        raise DataError(f"{request.data}: no such folder")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --tasks chooses others")
    if not _is_data_set(folder):
        raise DataError(f"{folder}: not a data set; --tasks names folders in {request.data}")
    folder = folder.resolve()
    column = next((paper for paper, task in TASKS.items() if task.folder == folder.name), None)
    return Task(column or folder.name, folder, column)


def _is_data_set(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("dataset.json", "images", "imagesTr"))


def _row(request: Request, name: str, title: str, tasks: Sequence[Task], base: RunConfig) -> Row:
    if not METHODS[name].of_ours:
        try:
            require_system(METHODS[name].system)
        except ConfigError as error:
            return Row(name, title, {}, str(error))
    return Row(name, title, {task.name: _runs(request, name, task, base) for task in tasks})


def _runs(request: Request, name: str, task: Task, base: RunConfig) -> tuple[Run, ...]:
    method = METHODS[name]
    weights = "none" if method.from_scratch else request.weights
    if not method.of_ours:
        config: RunConfig | SystemConfig = _system_config(request, method.system, base)
        weights = "none"
    else:
        config = base
        if config.slab_slices is None:
            config = config.model_copy(update={"slab_slices": _slab_slices(request, task, base.split)})
        if method.change:
            config = {**ABLATIONS, **BASELINES}[method.change](config)
    first = config.training.seed
    return tuple(
        Run(name, method.system, task, seed, _seeded(config, seed), weights)
        for seed in range(first, first + request.seeds)
    )


def _slab_slices(request: Request, task: Task, split: SplitConfig) -> int:
    """D: the paper's, or what the plan proposes, so that a row of as many slices is known to be the full one."""
    if task.column:
        return TASKS[task.column].slab_slices
    return read_plan_yaml(plan_file(request.out, task.folder, task.content, split)).slab_slices


def _system_config(request: Request, system: str, base: RunConfig) -> "SystemConfig":
    """A system's own recipe, with the split of ours."""
    from sam2_3dmed.baselines.recipes import system_recipe

    split = [f"split.{key}={value}" for key, value in base.split.model_dump().items()]
    of_patches = _patch_settings(request, system) if system in PATCH_SYSTEMS else ()
    return system_recipe(system, [*split, *of_patches, *request.budget])


def _patch_settings(request: Request, system: str) -> list[str]:
    """The settings for a system: those for all, and those with its name and a colon before them.

    Raises: ConfigError if there is no system of such a name.
    """
    settings = []
    for text in request.patch_settings:
        name, colon, setting = text.partition(":")
        if not colon or "=" in name:
            settings.append(text)
        elif name not in PATCH_SYSTEMS:
            raise ConfigError(f"--set-patches {text}: no system {name!r}; {suggest(name, PATCH_SYSTEMS)}")
        elif name == system:
            settings.append(setting)
    return settings


def _seeded(config: Any, seed: int) -> Any:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def _check(request: Request) -> None:
    """Raise ConfigError for numbers that make no sense."""
    if request.minutes is not None and request.epochs is not None:
        raise ConfigError("--minutes and --epochs both say how long to train; give one of them")
    if request.seeds < 1:
        raise ConfigError(f"--seeds {request.seeds}: at least 1")
