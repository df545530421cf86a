"""The network a recipe asks for, with the weights training starts from: SAM2's, none, or those of a run of ours."""

import logging
from importlib.metadata import version
from pathlib import Path

import torch

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.encoders.peft_adapters import add_lora, require_lora, train_last_stage
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.sizes import SIZES
from sam2_3dmed.model.weights import DEFAULT_HUB_ID, Sam2Weights, load_sam2, read_sam2
from sam2_3dmed.run.run_config import CONFIG_FILE, ModelSpec, Sam2Record
from sam2_3dmed.run.run_folder import MODEL_FILE, fill_network, read_sam2_record, read_weights, rebuild

logger = logging.getLogger(__name__)


def make_model(config: RunConfig, plan: Plan, weights: str) -> tuple[SAM2For3dMed, Sam2Record]:
    """The network a recipe and a plan ask for, with its first weights, ready to train, and the record of it.

    weights: `auto`, a hub id, a Hugging Face folder, a Meta `.pt`, `none`, or one of our run folders.

    Raises:
        WeightsError: weights that cannot be had, or are of another model. ConfigError: as `check_adaptation`.
    """
    check_adaptation(config, weights)
    network, record = _first_model(config, plan, DEFAULT_HUB_ID if weights == "auto" else weights)
    _freeze(network, record)
    return network, record


def remake_model(record: Sam2Record) -> SAM2For3dMed:
    """The network of a record, ready to train, with fresh weights: what a checkpoint of that run fits into."""
    network = rebuild(record)
    _freeze(network, record)
    return network


def check_adaptation(config: RunConfig, weights: str) -> None:
    """Raise ConfigError if there is nothing to adapt, or not what adapts it."""
    how = config.model.adapt
    if how and weights == "none":
        raise ConfigError(f"model.adapt {how} adapts a pre-trained encoder, and with --weights none there is none")
    if how == "lora":
        require_lora()


def _freeze(network: SAM2For3dMed, record: Sam2Record) -> None:
    """Freeze the encoder unless it trains, but for what adapts it."""
    model = record.recipe.model
    if record.encoder_trains:
        return
    if model.adapt == "lora":
        add_lora(network.encoder, model.lora_rank)
    elif model.adapt == "last_stage":
        train_last_stage(network.encoder)
    else:
        network.encoder.freeze()


def _first_model(config: RunConfig, plan: Plan, source: str) -> tuple[SAM2For3dMed, Sam2Record]:
    if source == "none":
        return _build(config, plan, "none", size=_size_from_scratch(config))
    if (Path(source) / CONFIG_FILE).is_file():
        return _from_run(config, plan, Path(source))
    found = read_sam2(source)
    if config.model.size not in ("auto", found.size):
        raise WeightsError(f"{source}: these are weights of size {found.size}, but model.size is {config.model.size}")
    return _build(config, plan, source, size=found.size, fill=found)


def _size_from_scratch(config: RunConfig) -> str:
    if config.model.size != "auto":
        return config.model.size
    size = "tiny" if torch.cuda.is_available() else "nano"
    logger.info("model.size is auto: from scratch on a %s, so %s", "GPU" if size == "tiny" else "CPU", size)
    return size


def _build(
    config: RunConfig,
    plan: Plan,
    source: str,
    *,
    size: str,
    fill: Sam2Weights | None = None,
    base: Sam2Record | None = None,
) -> tuple[SAM2For3dMed, Sam2Record]:
    """fill: SAM2's weights to start from; base: the run to start from, whose weights the caller loads."""
    model = config.model
    channels = base.model.channels if base else None if fill else model.channels
    width = channels or SIZES[size].channels
    if model.channels not in (None, width):
        raise WeightsError(f"{source}: these weights have {width} channels, but model.channels is {model.channels}")
    spec = ModelSpec(
        size=size,
        image_size=model.image_size or SIZES[size].image_size,
        num_classes=plan.num_classes,
        srpp=model.srpp,
        share_context=model.share_context,
        srpp_memory=model.srpp_memory,
        boundary=model.boundary,
        boundary_fusion=model.boundary_fusion,
        fusion_residual=model.fusion_residual,
        memory=model.memory,
        box_every=model.box_every,
        pointer_time=fill.pointer_time if fill else base.model.pointer_time if base else True,
        no_memory_token=fill is None and (base.model.no_memory_token if base else True),
        channels=channels,
    )
    network = build_network(**spec.model_dump())
    if fill is not None:
        load_sam2(network, fill)
    trains = model.train_encoder
    if trains is None:
        trains = model.adapt is None and (base.encoder_trains if base else fill is None)
    return network, Sam2Record(
        model=spec,
        encoder_trains=trains,
        plan=plan,
        recipe=config,
        weights=source,
        versions={name: version(name) for name in ("sam2-3dmed", "torch", "transformers")},
    )


def _from_run(config: RunConfig, plan: Plan, folder: Path) -> tuple[SAM2For3dMed, Sam2Record]:
    """Start from a run of ours; what belongs to classes starts fresh where their number differs."""
    old = read_sam2_record(folder, "--weights")
    if config.model.size not in ("auto", old.model.size):
        raise WeightsError(f"{folder}: this run is of size {old.model.size}, but model.size is {config.model.size}")
    image_size = config.model.image_size or old.model.image_size
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_size": image_size})})
    network, record = _build(config, plan, str(folder), size=old.model.size, base=old)
    state = read_weights(folder / MODEL_FILE)
    if old.model.num_classes != plan.num_classes:
        logger.info(
            "%s has %d classes, this data %d: their parts start fresh",
            folder,
            old.model.num_classes,
            plan.num_classes,
        )
        state = {name: tensor for name, tensor in state.items() if "class_" not in name}
        state |= {name: tensor for name, tensor in network.state_dict().items() if "class_" in name}
    fill_network(network, state, folder / MODEL_FILE)
    return network, record
