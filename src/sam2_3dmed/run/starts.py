"""All that a run begins with: split, plan, prepared cases, network; by the kind of system."""

import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sam2_3dmed.baselines.nnunet.environment import installed_versions
from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig
from sam2_3dmed.baselines.nnunet.run import fit_nnunet, plan_run
from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.baselines.systems import require_system
from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.data.cache import CaseCache, build_cache
from sam2_3dmed.data.dataset import MedicalDataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import Split, split_cases
from sam2_3dmed.encoders.peft_adapters import merge_lora
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.processes.map_cases import Progress, progress_bar
from sam2_3dmed.run.build_model import make_model, remake_model
from sam2_3dmed.run.run_config import NNUNET_KIND, PATCH_KIND, NnunetRecord, PatchRecord, RunRecord, Sam2Record
from sam2_3dmed.run.run_folder import make_predictor, save_model
from sam2_3dmed.run.train_request import TrainRequest
from sam2_3dmed.training.checkpoints import newest_whole_state
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.feature_cache import require_frozen
from sam2_3dmed.training.fit import FitResult, fit
from sam2_3dmed.training.memory_budget import fit_to_memory
from sam2_3dmed.training.trainer import seed_everything, use_bf16

if TYPE_CHECKING:
    from sam2_3dmed.baselines.start import PatchRun

SPLIT_FILE = "split.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start(ABC):
    """All that training begins with."""

    split: Split
    record: RunRecord

    @abstractmethod
    def fit(self, folder: Path, *, resume: bool, distributed: DistributedContext) -> FitResult:
        """Train."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what training has come to, `model.safetensors` last: it is what marks a finished run."""


@dataclass(frozen=True)
class NetworkStart(Start):
    """Of a network that is trained in this process."""

    network: nn.Module

    def save(self, folder: Path) -> None:
        """See `runs.save_model`."""
        save_model(self.network, self.record, folder)


@dataclass(frozen=True)
class Sam2Start(NetworkStart):
    """Of a run of ours."""

    record: Sam2Record
    network: SAM2For3dMed
    predictor: Predictor
    training: CaseCache
    validation: CaseCache

    def within_memory(self, gigabytes: float, distributed: DistributedContext) -> "Sam2Start":
        """The same, with a step that fits into that."""
        recipe = fit_to_memory(self.record.recipe, self.record.plan, self.predictor, gigabytes, distributed.size)
        return replace(self, record=self.record.model_copy(update={"recipe": recipe}))

    def fit(self, folder: Path, *, resume: bool, distributed: DistributedContext) -> FitResult:
        """See `training.fit.fit`; adapters become part of the weights."""
        result = fit(
            self.network,
            self.predictor,
            training=self.training,
            validation=self.validation,
            config=self.record.recipe,
            folder=folder,
            resume=resume,
            distributed=distributed,
        )
        if self.record.recipe.model.adapt == "lora" and distributed.first:
            merge_lora(self.network.encoder)
        return result


@dataclass(frozen=True)
class PatchStart(NetworkStart):
    """Of a run of a patch-based system."""

    record: PatchRecord
    run: "PatchRun"

    def fit(self, folder: Path, *, resume: bool, distributed: DistributedContext) -> FitResult:
        """See `baselines.module.fit_patches`."""
        return self.run.fit(folder, resume=resume, distributed=distributed)


@dataclass(frozen=True)
class NnunetStart(Start):
    """Of a run of the real nnU-Net, which trains in a process of its own."""

    record: NnunetRecord

    def fit(self, folder: Path, *, resume: bool, distributed: DistributedContext) -> FitResult:
        """See `baselines.nnunet.run.fit_nnunet`."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return fit_nnunet(self.record.recipe, self.record.model, self.record.plan.labels, folder, device=device)

    def save(self, folder: Path) -> None:
        """Nothing: nnU-Net's process has."""


def make_start(
    request: TrainRequest, catalog: MedicalDataset, folder: Path, old: RunRecord | None, distributed: DistributedContext
) -> Start:
    """old: of the run that is resumed, or that another process has begun.

    Raises: UserError for data, plan or weights that cannot be used.
    """
    config = old.recipe if old else request.recipe
    split = Split.read(folder / SPLIT_FILE) if old else split_cases(catalog.names, config.split, request.fold)
    split.require_known(catalog.names)
    opened = catalog.subset({*split.train, *split.validation})  # the test cases stay closed
    plan = old.plan if old else _plan(opened, split, request.plan)
    logger.info(
        "%s: %d cases to train on, %d to validate, %d to test; %s slices",
        *(catalog.name, len(split.train), len(split.validation), len(split.test), plan.slicing_axis),
    )
    prepare = _Preparation(request, opened, plan, folder, distributed)
    if isinstance(config, NnunetConfig):
        assert old is None or isinstance(old, NnunetRecord)
        return _start_nnunet(config, split, prepare, old)
    seed_everything(config.training.seed)
    if isinstance(config, PatchConfig):
        assert old is None or isinstance(old, PatchRecord)
        return _start_patches(config, split, prepare, old)
    assert old is None or isinstance(old, Sam2Record)
    return _start_sam2(config, request.weights, split, prepare, old)


@dataclass(frozen=True)
class _Preparation:
    """What cases are prepared with."""

    request: TrainRequest
    catalog: MedicalDataset
    plan: Plan
    folder: Path
    distributed: DistributedContext

    def cache(self) -> CaseCache:
        """The prepared cases."""
        with self.progress("Preparing cases") as progress:
            return build_cache(self.catalog, self.plan, self.cache_folder, progress=progress)

    def progress(self, title: str) -> AbstractContextManager[Progress | None]:
        """A bar, in the first process."""
        return progress_bar(title) if self.distributed.first else nullcontext()

    @property
    def cache_folder(self) -> Path:
        """Runs that prepare the same files in the same way share it; any other run keeps its own."""
        parts = f"{self.request.data.resolve()} {self.plan.preprocessing} {self.plan.label_values}"
        key = sha256(parts.encode()).hexdigest()[:12]
        return self.request.cache or self.folder.parent / ".cache" / key


def _start_sam2(
    config: RunConfig, weights: str, split: Split, prepare: _Preparation, old: Sam2Record | None
) -> Sam2Start:
    # Weights first: they fail in seconds, the cache takes minutes.
    plan = prepare.plan
    network, record = _sam2_network(old, prepare.folder) if old else make_model(config, plan, weights)
    logger.info(
        "model: size %s at %d pixels, D = %d, K = %d, weights %s, encoder %s",
        *(record.model.size, record.model.image_size, config.slab_slices or plan.slab_slices, plan.num_classes),
        record.weights,
        "trains" if record.encoder_trains else f"frozen, adapts by {config.model.adapt or 'nothing'}",
    )
    if config.feature_cache.views > 0:
        require_frozen(network.encoder)
    cache = prepare.cache()
    bf16 = use_bf16(config.training.precision, "cuda" if torch.cuda.is_available() else "cpu")
    predictor = make_predictor(network, record, bf16=bf16)
    return Sam2Start(split, record, network, predictor, cache.subset(split.train), cache.subset(split.validation))


def _sam2_network(old: Sam2Record, folder: Path) -> tuple[SAM2For3dMed, Sam2Record]:
    """The network of a run to resume; with its first weights, if it was stopped before there was a checkpoint."""
    if newest_whole_state(folder / "checkpoints") is not None:
        return remake_model(old), old
    return make_model(old.recipe, old.plan, old.weights)[0], old


def _start_patches(config: PatchConfig, split: Split, prepare: _Preparation, old: PatchRecord | None) -> PatchStart:
    from sam2_3dmed.baselines.start import begin

    require_system(config.system)
    cache = prepare.cache()
    run = begin(
        config,
        prepare.plan,
        prepare.catalog,
        training=cache.subset(split.train),
        validation=cache.subset(split.validation),
        folder=prepare.cache_folder,
        spec=old.model if old else None,
        progress=prepare.progress,
    )
    record = old or PatchRecord(
        kind=PATCH_KIND,
        model=run.spec,
        plan=prepare.plan,
        recipe=config,
        weights="none",
        versions={name: version(name) for name in ("sam2-3dmed", "torch", "monai")},
    )
    return PatchStart(split, record, run.predictor.network, run)


def _start_nnunet(config: NnunetConfig, split: Split, prepare: _Preparation, old: NnunetRecord | None) -> NnunetStart:
    if prepare.distributed.size > 1:
        raise ConfigError("--devices and --nodes: nnunet trains on one GPU here")
    require_system(config.system)
    if old is not None:
        return NnunetStart(split, old)
    spec = plan_run(config, prepare.plan, prepare.catalog, split, prepare.folder, progress=prepare.progress)
    versions = {"sam2-3dmed": version("sam2-3dmed"), **installed_versions()}
    record = NnunetRecord(
        kind=NNUNET_KIND, model=spec, plan=prepare.plan, recipe=config, weights="none", versions=versions
    )
    logger.info("model: %s", record.about)
    return NnunetStart(split, record)


def _plan(catalog: MedicalDataset, split: Split, path: Path | None) -> Plan:
    """The given plan, or one proposed from the training cases alone, so that nothing leaks from the others."""
    if path is not None:
        return read_plan_yaml(path)
    with progress_bar("Reading cases") as progress:
        found = fingerprint(catalog, progress=progress)
    return propose_plan(found, split.train)
