"""Runs of patch-based systems: how one starts, trains and is saved, and how a trained model is loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sam2_3dmed.baselines.cache import GriddedCase, PatchCase, build_patch_cache, with_grids
from sam2_3dmed.baselines.module import fit_patches
from sam2_3dmed.baselines.networks import build, plan_network
from sam2_3dmed.baselines.plan import intensities, outline
from sam2_3dmed.baselines.predictor import PatchPredictor
from sam2_3dmed.baselines.recipe import PatchConfig, PatchRecord, PatchSpec
from sam2_3dmed.config import Plan, changed
from sam2_3dmed.run.run_folder import MODEL_FILE, fill_network, read_weights, save_model
from sam2_3dmed.run.systems import Preparation, TrainingRun
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.fit import FitResult
from sam2_3dmed.training.trainer import seed_everything

logger = logging.getLogger(__name__)


@dataclass
class PatchRun(TrainingRun):
    """A network with the cases that it learns from and is validated on."""

    record: PatchRecord
    predictor: PatchPredictor
    training: Sequence[PatchCase]
    validation: Sequence[GriddedCase]
    folder: Path
    distributed: DistributedContext

    def fit(self, *, resume: bool) -> FitResult:
        return fit_patches(
            self.predictor,
            training=self.training,
            validation=self.validation,
            config=self.record.recipe,
            folder=self.folder,
            resume=resume,
            distributed=self.distributed,
        )

    def save(self) -> None:
        save_model(self.predictor.network, self.record, self.folder)


def start_run(preparation: Preparation) -> PatchRun:
    """Plan and build the network, and bring the training cases to the common grid.

    Raises:
        UserError: no CLIP model at `model.text`, or the cache cannot be written.
    """
    recipe: PatchConfig = preparation.recipe
    plan, split, dataset = preparation.plan, preparation.split, preparation.dataset
    seed_everything(recipe.training.seed)
    cache = preparation.cases()
    cases = with_grids(cache.subset(split.train), dataset, plan.slicing_axis)
    record = cast(PatchRecord | None, preparation.resumed) or PatchRecord(
        system=recipe.system,
        model=plan_spec(recipe, plan, cases),
        plan=plan,
        recipe=recipe,
        weights="none",
        versions={name: version(name) for name in ("sam2-3dmed", "torch", "monai")},
    )
    logger.info("model: %s", record.about)
    seed_everything(recipe.training.seed)
    network = first_network(record.model, recipe, plan)
    with preparation.progress("Resampling cases") as bar:
        patches = build_patch_cache(cases, record.model, preparation.cache_folder, progress=bar)
    config = changed(recipe.inference, {"precision": recipe.training.precision}, "inference")
    predictor = PatchPredictor(network, record.model, plan, config)
    validation = with_grids(cache.subset(split.validation), dataset, plan.slicing_axis)
    return PatchRun(record, predictor, patches, validation, preparation.folder, preparation.distributed)


def load_run(folder: Path, record: PatchRecord, device: torch.device, **settings: Any) -> PatchPredictor:
    """The trained model of a run folder."""
    network = build(record.model)
    fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
    config = changed(record.recipe.inference, settings, "inference")
    return PatchPredictor(network.to(device).eval(), record.model, record.plan, config)


def plan_spec(config: PatchConfig, plan: Plan, cases: Sequence[GriddedCase]) -> PatchSpec:
    """The network and its input, as the training cases decide."""
    outlined = outline(
        config,
        [case.grid for case in cases],
        num_channels=len(plan.channels),
        num_classes=plan.num_classes,
        on_gpu=torch.cuda.is_available(),
    )
    patch, arguments = plan_network(config, outlined)
    kinds = [channel.normalisation for channel in plan.channels]
    pairs = ((np.asarray(case.cached.image), np.asarray(case.cached.label)) for case in cases)
    return PatchSpec(
        system=config.system,
        size=outlined.size,
        spacing_mm=outlined.spacing_mm,
        patch=patch,
        intensities=tuple(intensities(kinds, pairs)),
        num_classes=plan.num_classes,
        network=arguments,
        text=config.names,
    )


def first_network(spec: PatchSpec, config: PatchConfig, plan: Plan) -> nn.Module:
    """The network with its first weights; the names of the classes are embedded if `model.text` has a CLIP model.

    Raises:
        WeightsError: there is no such model.
    """
    network = build(spec)
    if config.model.text is not None:
        from sam2_3dmed.baselines.universal import Universal, embed_names

        assert isinstance(network, Universal)
        network.head.text = embed_names(Path(config.model.text), list(plan.labels.values()))
    return network
