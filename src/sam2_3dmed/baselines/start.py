"""What a run of a patch-based system begins with: its plan, its first weights, its cases on the common grid."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sam2_3dmed.baselines.cache import GriddedCase, PatchCase, build_patch_cache, with_grids
from sam2_3dmed.baselines.module import fit_patches
from sam2_3dmed.baselines.networks import plan_network
from sam2_3dmed.baselines.plan import intensities, outline
from sam2_3dmed.baselines.predictor import PatchPredictor, make_patch_predictor
from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.baselines.spec import PatchSpec
from sam2_3dmed.config import Plan
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.data.dataset import MedicalDataset
from sam2_3dmed.processes.map_cases import Progress
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.fit import FitResult
from sam2_3dmed.training.trainer import seed_everything, use_bf16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatchRun:
    """A network that can be trained, and what on."""

    config: PatchConfig
    spec: PatchSpec
    predictor: PatchPredictor
    training: Sequence[PatchCase]
    validation: Sequence[GriddedCase]

    def fit(self, folder: Path, *, resume: bool, distributed: DistributedContext) -> FitResult:
        """See `training.fit.fit`."""
        return fit_patches(
            self.predictor,
            training=self.training,
            validation=self.validation,
            config=self.config,
            folder=folder,
            resume=resume,
            distributed=distributed,
        )


def begin(
    config: PatchConfig,
    plan: Plan,
    catalog: MedicalDataset,
    *,
    training: CaseCache,
    validation: CaseCache,
    folder: Path,
    spec: PatchSpec | None,
    progress: Callable[[str], AbstractContextManager[Progress | None]],
) -> PatchRun:
    """Plan, build, and bring the training cases to the common grid.

    catalog: in which the cases are. folder: of the cache. spec: of the run that is resumed; none plans one. progress: a
    bar for a title.

    Raises:
        UserError: no CLIP model where it should be, or the cache cannot be written.
    """
    cases = with_grids(training, catalog, plan.slicing_axis)
    spec = spec or plan_spec(config, plan, cases)
    logger.info("model: %s", spec.about)
    seed_everything(config.training.seed)
    network = first_network(spec, config, plan)
    with progress("Resampling cases") as bar:
        patches = build_patch_cache(cases, spec, folder, progress=bar)
    bf16 = use_bf16(config.training.precision, "cuda" if torch.cuda.is_available() else "cpu")
    predictor = make_patch_predictor(network, spec, plan, config, bf16=bf16)
    return PatchRun(config, spec, predictor, patches, with_grids(validation, catalog, plan.slicing_axis))


def plan_spec(config: PatchConfig, plan: Plan, cases: Sequence[GriddedCase]) -> PatchSpec:
    """What the training cases dictate."""
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
    """With the weights that training begins with; the names of the classes embedded, if CLIP is there to do it.

    Raises: WeightsError if it is not where it should be.
    """
    network = spec.build()
    if config.model.text is not None:
        from sam2_3dmed.baselines.text import embed_names
        from sam2_3dmed.baselines.universal import Universal

        assert isinstance(network, Universal)
        network.head.text = embed_names(Path(config.model.text), list(plan.labels.values()))
    return network
