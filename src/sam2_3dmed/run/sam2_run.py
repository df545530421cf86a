"""Training runs of SAM2-3dMed: how one starts, trains and is saved."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sam2_3dmed.config import Plan, RunConfig, TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.encoders.peft_adapters import merge_lora
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.run.build_model import make_model, remake_model
from sam2_3dmed.run.run_config import RunRecord, Sam2Record
from sam2_3dmed.run.run_folder import save_model
from sam2_3dmed.run.sam2_model import make_predictor
from sam2_3dmed.run.systems import Preparation, TrainingRun
from sam2_3dmed.training.checkpoints import newest_whole_state
from sam2_3dmed.training.distributed import DistributedContext, seed_all
from sam2_3dmed.training.feature_cache import require_frozen
from sam2_3dmed.training.loop import FitResult, fit
from sam2_3dmed.training.memory_budget import fit_to_memory
from sam2_3dmed.training.slab_training import SlabTraining, assemble_slabs
from sam2_3dmed.training.trials import RateTest, find_rate

logger = logging.getLogger(__name__)


@dataclass
class Sam2Run(TrainingRun):
    """A predictor's network with its cases."""

    record: Sam2Record
    predictor: Predictor
    training: Sequence[CachedCase]
    validation: Sequence[CachedCase]
    folder: Path
    distributed: DistributedContext
    unlabelled: Sequence[CachedCase] = ()

    def fit(self, *, resume: bool) -> FitResult:
        result = fit(self._assemble, self.record.recipe.training, self.folder, self.distributed, resume=resume)
        if self.record.recipe.training.encoder == "lora" and self.distributed.first:
            merge_lora(self.predictor.network.encoder)
        return result

    def save(self) -> None:
        save_model(self.predictor.network, self.record, self.folder)

    def try_rates(self) -> RateTest:
        return find_rate(self._assemble(self.record.recipe.training), self.distributed.launch())

    def _assemble(self, training: TrainingConfig) -> SlabTraining:
        """The network with its slabs. training: the recipe's, perhaps with epochs for minutes."""
        recipe = self.record.recipe.model_copy(update={"training": training})
        return assemble_slabs(
            self.predictor,
            self.training,
            self.validation,
            recipe,
            self.folder,
            self.distributed,
            unlabelled=self.unlabelled,
        )


def start_run(preparation: Preparation) -> Sam2Run:
    """Build the network and prepare the cases; weights come first, since they fail in seconds."""
    recipe, plan = preparation.recipe, preparation.plan
    seed_all(recipe.training.seed)
    network, record = first_network(recipe, plan, preparation.weights, preparation.folder, preparation.resumed)
    if recipe.feature_cache.views > 0:
        require_frozen(network.encoder)
    training, validation = preparation.cases()
    predictor = make_predictor(network, record, precision=recipe.training.precision)
    if preparation.gpu_memory is not None:
        fitting = fit_to_memory(record.recipe, plan, predictor, preparation.gpu_memory, preparation.distributed.size)
        record = record.model_copy(update={"recipe": fitting})
    unlabelled = preparation.unlabelled_cases()
    return Sam2Run(record, predictor, training, validation, preparation.folder, preparation.distributed, unlabelled)


def first_network(
    recipe: RunConfig, plan: Plan, weights: str, folder: Path, resumed: RunRecord | None
) -> tuple[SAM2For3dMed, Sam2Record]:
    """A network with its first weights, unless a checkpoint in the run folder replaces them; see `make_model`."""
    network, record = _network(recipe, plan, weights, folder, cast(Sam2Record | None, resumed))
    logger.info(
        "model: size %s at %d pixels, D = %d, K = %d, weights %s, encoder: %s",
        *(record.recipe.model.size, record.recipe.model.image_size),
        *(recipe.slab_slices or plan.slab_slices, plan.num_classes, record.weights, record.recipe.training.encoder),
    )
    return network, record


def _network(
    recipe: RunConfig, plan: Plan, weights: str, folder: Path, old: Sam2Record | None
) -> tuple[SAM2For3dMed, Sam2Record]:
    if old is None:
        return make_model(recipe, plan, weights)
    network = remake_model(old)
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    if newest_whole_state(folder / "checkpoints", state) is not None:
        return network, old
    seed_all(old.recipe.training.seed)  # as if the network had not been made before
    return make_model(old.recipe, old.plan, old.weights)[0], old
