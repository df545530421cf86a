"""Systems that can be trained and that predict: the interface of each, and the registry that finds them.

A system is an object that an installed package names as an entry point of the group `sam2_3dmed.systems`. Our own
method is one of them. Modules with entry points should import heavy packages only when a method needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sam2_3dmed.errors import ConfigError, shown, suggest

if TYPE_CHECKING:
    import torch

    from sam2_3dmed.config import Plan
    from sam2_3dmed.data.cache import CachedCase
    from sam2_3dmed.data.dataset import Case, MedicalDataset
    from sam2_3dmed.data.splits import Split
    from sam2_3dmed.inference.interface import Segmenter
    from sam2_3dmed.processes.map_cases import Progress
    from sam2_3dmed.run.run_config import RunRecord
    from sam2_3dmed.training.distributed import DistributedContext
    from sam2_3dmed.training.loop import FitResult
    from sam2_3dmed.training.trials import RateTest
    from sam2_3dmed.volume.label_scheme import LabelScheme
    from sam2_3dmed.volume.volume import Volume

GROUP = "sam2_3dmed.systems"
OURS = "sam2_3dmed"
"""The name of our own method among the systems."""
Backend = Literal["pytorch", "onnxruntime"]


@dataclass(frozen=True)
class Preparation:
    """Everything that a system needs to start a run.

    Args:
        dataset: the training and validation cases; test cases stay closed.
        folder: the run folder.
        cache_folder: for prepared cases; runs that prepare the same files in the same way share it.
        weights: as for `train --weights`.
        gpu_memory: in GB; a training step must fit into it.
        resumed: the record of the run to resume; none for a new run.
        unlabelled: cases without labels, for a system that learns from them, too.
    """

    recipe: Any
    plan: Plan
    split: Split
    dataset: MedicalDataset
    folder: Path
    cache_folder: Path
    distributed: DistributedContext
    weights: str = "auto"
    gpu_memory: float | None = None
    resumed: RunRecord | None = None
    unlabelled: tuple[Case, ...] = ()

    def cases(self) -> tuple[list[CachedCase], list[CachedCase]]:
        """The training and the validation cases, prepared as the plan says."""
        from sam2_3dmed.data.cache import build_cache

        with self.progress("Preparing cases") as progress:
            prepared = build_cache(self.dataset, self.plan, self.cache_folder, progress=progress)
        parts = self.split.train, self.split.validation
        training, validation = ([case for case in prepared if case.name in names] for names in parts)
        return training, validation

    def unlabelled_cases(self) -> list[CachedCase]:
        """The cases without labels, prepared alike; the plan's ignore label is on all of their voxels."""
        from sam2_3dmed.data.cache import build_cache

        if not self.unlabelled:
            return []
        dataset = replace(self.dataset, cases=self.unlabelled)
        with self.progress("Preparing scans without labels") as progress:
            return build_cache(dataset, self.plan, self.cache_folder / "unlabelled", progress=progress)

    def progress(self, title: str) -> AbstractContextManager[Progress | None]:
        """A progress bar; only the first process shows one."""
        from sam2_3dmed.processes.map_cases import progress_bar

        return progress_bar(title) if self.distributed.first else nullcontext()


class TrainingRun(ABC):
    """A run that is ready to train. record: is written to `config.yaml` before training begins."""

    record: RunRecord

    @abstractmethod
    def fit(self, *, resume: bool) -> FitResult:
        """Train, or go on from the last checkpoint."""

    @abstractmethod
    def save(self) -> None:
        """Write the results into the run folder, `model.safetensors` last: it marks a finished run."""

    def try_rates(self) -> RateTest:
        """Try learning rates, and leave the weights as they are.

        Raises:
            ConfigError: the system has no such test.
        """
        raise ConfigError(f"learning rates are tried for {OURS} only")


class System(Protocol):
    """A way to segment volumes. A class that inherits from this one gets the defaults.

    Args:
        name: after `train --system`.
        title: in tables and reports.
        source: where it is described.
        record_type: the type of `config.yaml`; its field `recipe` has the type of the recipe.
        backends: what can run a trained model.
        own_process: whether it computes in a process of its own, whose memory must be asked for.
        learns_from_patches: whether `reproduce --set-patches` is for its recipe.
    """

    name: str
    title: str
    source: str
    record_type: type[RunRecord]
    backends: tuple[Backend, ...] = ("pytorch",)
    own_process: bool = False
    learns_from_patches: bool = False

    def recipe(self, name: str = "auto", settings: Sequence[str] = (), *, from_scratch: bool = False) -> Any:
        """The recipe of a name, with `section.key=value` settings applied.

        Args:
            name: as for `train --recipe`; `auto` is the system's own.
            from_scratch: whether there are no pre-trained weights.

        Raises:
            ConfigError: no such recipe, or an invalid setting.
        """

    def require(self) -> None:
        """Raise ConfigError if a package or an environment that the system needs is not there."""
        return

    def check(self, recipe: Any, *, weights: str, gpu_memory: float | None) -> None:
        """Raise ConfigError for options that do not go together; called before data are read."""

    def learns_without_labels(self, recipe: Any) -> bool:
        """Whether a recipe also takes scans without labels."""
        return False

    def require_labels(self, labels: LabelScheme, recipe: Any) -> None:
        """Raise ConfigError for labels that the system cannot learn from; called before cases are read.

        A system that knows nothing of an ignore label and of regions refuses them here.
        """
        if labels.regions:
            raise ConfigError(f"{self.name} cannot learn regions, which this data set has; --system {OURS} can")
        if labels.ignore is not None:
            raise ConfigError(
                f"{self.name} cannot leave out voxels, and {labels.ignore} is an ignore label; --system {OURS} can"
            )

    def start(self, preparation: Preparation) -> TrainingRun:
        """Build the network, or plan it from the cases, and prepare the cases.

        Raises:
            UserError: data, plan or weights that cannot be used.
        """

    def load(self, folder: Path, record: Any, *, device: torch.device, backend: Backend, **settings: Any) -> Segmenter:
        """The trained model of a run folder. settings: of the recipe's section `inference`, instead of the run's.

        Raises:
            UserError: broken weights, or a setting that does not exist.
        """

    def training_peaks(self, folder: Path) -> tuple[float | None, float | None]:
        """The most memory and GPU memory in MB that training took in a process of its own; None where unknown."""
        return None, None

    def prediction_cost(self, segmenter: Any, volume: Volume) -> tuple[float, float | None, float | None]:
        """GFLOP of one prediction in a process of its own, and its most memory and GPU memory in MB."""
        raise ConfigError(f"{self.name} computes in this process")


@cache
def _installed() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != OURS, name))}


def system_names() -> list[str]:
    """The names of all installed systems, ours first."""
    return list(_installed())


def find_system(name: str) -> System:
    """The system of a name; a ConfigError if there is none, or its module cannot be loaded."""
    if name not in _installed():
        raise ConfigError(f"no system {shown(name)}; {suggest(name, system_names())}")
    try:
        system: System = _installed()[name].load()
    except Exception as error:  # the module of another package may fail in any way
        raise ConfigError(f"system {name} cannot be loaded: {error}") from error
    return system


def require_recipe(system: System, recipe: Any) -> None:
    """Raise ConfigError if a recipe is another system's."""
    expected: Any = system.record_type.model_fields["recipe"].annotation
    if not isinstance(recipe, expected) or getattr(recipe, "system", system.name) != system.name:
        raise ConfigError(f"this recipe is for {getattr(recipe, 'system', OURS)}, not for {system.name}")
