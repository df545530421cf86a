"""From made-up anatomy to a run folder whose weights other runs start from: see `training.prompted_slabs`."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed.config import ChannelPlan, Plan, RunConfig, TrainingConfig, read_recipe
from sam2_3dmed.errors import ConfigError, TrainingError
from sam2_3dmed.processes.signals import Terminated, raising_terminated
from sam2_3dmed.run.build_model import check_recipe
from sam2_3dmed.run.run_config import RunRecord, Sam2Record
from sam2_3dmed.run.run_folder import read_record
from sam2_3dmed.run.sam2_model import make_predictor
from sam2_3dmed.run.sam2_run import Sam2Run, first_network
from sam2_3dmed.run.train import log_result, new_or_resumed, writing_run
from sam2_3dmed.training.distributed import DistributedContext, seed_all
from sam2_3dmed.training.prompted_slabs import make_validation
from sam2_3dmed.training.slab_training import SlabTraining, assemble_pretraining

VALIDATION_VOLUMES = 16
PLAN = Plan(
    dataset="made-up anatomy",
    channels=(ChannelPlan(name="image", normalisation="percentiles", low=0.5, high=99.5),),
    labels={1: "object"},
    slicing_axis="axial",
    slab_slices=24,
    nsd_tolerance_mm=2.0,
)
"""Of a promptable network: its volumes and masks are prepared like those of any MR scan."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainRequest:
    """What pre-training is asked for.

    Args:
        out: the run folder.
        recipe: none for the preset `pretrain`; its network is promptable.
        weights: `none`, or whatever `train` takes.
        resume: go on with the run in `out`.
        devices, nodes: see `DistributedContext.find`.
    """

    out: Path
    recipe: RunConfig | None = None
    weights: str = "none"
    resume: bool = False
    devices: int | None = None
    nodes: int | None = None


class PretrainingRun(Sam2Run):
    """A promptable network with slabs that are made as it trains."""

    def _assemble(self, training: TrainingConfig) -> SlabTraining:
        recipe = self.record.recipe.model_copy(update={"training": training})
        return assemble_pretraining(self.predictor, self.validation, recipe, self.distributed)


def pretrain(request: PretrainRequest) -> Path | None:
    """Train a promptable network on made-up anatomy, and leave a run folder. Each process of a run calls this.

    Returns:
        The run folder; None in a process that only helps the first one.

    Raises:
        UserError: a recipe or weights that cannot be used; a run folder that is there already, or, to resume, is not.
        Terminated: SIGTERM came; `resume` goes on from there.
    """
    distributed = DistributedContext.find(request.devices, request.nodes)
    if not distributed.first:
        logging.getLogger("sam2_3dmed").setLevel(logging.ERROR)
        if distributed.start_barrier():
            with suppress(Terminated, TrainingError), raising_terminated():  # the first process reports the same
                record = read_record(request.out)
                _start(request, record.recipe, record, distributed).fit(resume=request.resume)
        return None
    try:
        if new_or_resumed(request.out, request.resume):
            recipe = read_recipe("pretrain") if request.resume else _checked(request)
            with writing_run(request.out):
                _pretrain(request, recipe, distributed)
        return request.out
    finally:
        distributed.start_barrier(False)  # if the others still wait, there is nothing to do for them


def _checked(request: PretrainRequest) -> RunConfig:
    recipe = read_recipe("pretrain") if request.recipe is None else request.recipe
    if not recipe.model.promptable or recipe.model.box_every:
        raise ConfigError("pretrain: the network is promptable, so model.promptable=true and model.box_every=0")
    unused = {
        "loss.terms.consistency": recipe.loss.has_teacher,
        "training.unlabelled_fraction": recipe.training.unlabelled_fraction > 0,
        "training.single_slice_fraction": recipe.training.single_slice_fraction > 0,
        "feature_cache.views": recipe.feature_cache.views > 0,
        "inference.mode=slabs": recipe.inference.mode != "stream",
    }
    if given := [name for name, value in unused.items() if value]:
        raise ConfigError(f"pretrain: made-up anatomy has no use for {given[0]}")
    check_recipe(recipe, request.weights)
    return recipe


def _pretrain(request: PretrainRequest, recipe: RunConfig, distributed: DistributedContext) -> None:
    """recipe: of a new run."""
    old = read_record(request.out) if request.resume else None
    if old is not None and not (isinstance(old, Sam2Record) and old.recipe.model.promptable):
        raise ConfigError(f"{request.out}: is no run of pretrain; go on with it by train --resume")
    run = _start(request, recipe if old is None else old.recipe, old, distributed)
    if old is None:
        run.record.write(request.out)  # it makes the folder a run
    distributed.start_barrier()
    log_result(run.fit(resume=request.resume))
    run.save()


def _start(
    request: PretrainRequest, recipe: RunConfig, old: RunRecord | None, distributed: DistributedContext
) -> PretrainingRun:
    seed_all(recipe.training.seed)
    network, record = first_network(recipe, PLAN, request.weights, request.out, old)
    validation = make_validation(
        request.out / "validation", VALIDATION_VOLUMES, network.encoder.image_size, recipe.training.seed
    )
    predictor = make_predictor(network, record, precision=recipe.training.precision)
    return PretrainingRun(record, predictor, [], validation, request.out, distributed)
