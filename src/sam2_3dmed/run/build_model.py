"""The network of a recipe, with the weights that training starts from: SAM2's, none, or those of an earlier run."""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sam2_3dmed.config import NetworkConfig, Plan, RunConfig
from sam2_3dmed.encoders.peft_adapters import add_lora, require_lora, train_last_stage
from sam2_3dmed.encoders.registry import find_encoder
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.model.build import SIZES, build_network, complete
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.weights import load_sam2, read_sam2
from sam2_3dmed.run.first_weights import find_weights, run_of_weights
from sam2_3dmed.run.run_config import Sam2Record
from sam2_3dmed.run.run_folder import MODEL_FILE, fill_network, read_sam2_record, read_weights
from sam2_3dmed.training.loggers import require_loggers
from sam2_3dmed.training.losses import TotalLoss

logger = logging.getLogger(__name__)


def make_model(recipe: RunConfig, plan: Plan, weights: str) -> tuple[SAM2For3dMed, Sam2Record]:
    """Build the network of a recipe with its first weights, ready to train.

    weights: `auto`, a hub id, a Hugging Face folder, a `.pt` file of Meta's, `nano`, `none`, or the folder of a run.

    Returns:
        The network, and its record with the complete recipe: `auto` and none in its section `model` are filled in.

    Raises: as `check_model`; WeightsError if the weights cannot be read, or belong to another network.
    """
    check_model(recipe, weights)
    source = find_weights(weights)
    if source == "none":
        network, config, encoder = _from_scratch(recipe.model, plan)
    elif (folder := run_of_weights(source)) is not None:
        network, config, encoder = _from_run(recipe.model, plan, folder, source)
    else:
        network, config, encoder = _from_sam2(recipe.model, plan, source)
    training = recipe.training
    if training.encoder == "auto":
        training = training.model_copy(update={"encoder": encoder})
    record = Sam2Record(
        plan=plan,
        recipe=recipe.model_copy(update={"model": config, "training": training}),
        weights=source,
        versions={name: version(name) for name in ("sam2-3dmed", "torch", "transformers")},
    )
    _freeze(network, record)
    return network, record


def remake_model(record: Sam2Record) -> SAM2For3dMed:
    """Build the network of a record with fresh weights, ready to train: a checkpoint of that run fits into it."""
    network = build_network(record.recipe.model, record.plan.num_classes)
    _freeze(network, record)
    return network


def check_recipe(recipe: RunConfig, weights: str) -> None:
    """As `check_model`, and ConfigError for unknown terms of the loss, or a logger whose package is missing."""
    require_loggers(recipe.training.loggers)
    TotalLoss(recipe.loss)
    check_model(recipe, weights)
    unlabelled, teacher = recipe.training.unlabelled_fraction > 0, recipe.loss.has_teacher
    if teacher and recipe.training.ema_decay is None:
        raise ConfigError("loss.terms: consistency is with a moving average of the weights, so set training.ema_decay")
    if (teacher or unlabelled) and recipe.feature_cache.views:
        raise ConfigError("scans without labels and a teacher need slabs augmented anew, so feature_cache.views=0")
    if (teacher or unlabelled) and recipe.model.box_every:
        raise ConfigError("scans without labels and a teacher have no boxes, so model.box_every=0")
    if unlabelled and not (teacher or (recipe.model.srpp and recipe.loss.terms.get("relative_position", 0) > 0)):
        raise ConfigError(
            "training.unlabelled_fraction: no loss takes such scans; give consistency a weight in loss.terms, "
            "or set model.srpp=true and give relative_position one"
        )


def check_model(recipe: RunConfig, weights: str) -> None:
    """Raise ConfigError for no such encoder, no weights for it, none to adapt, or a package that is missing."""
    name, how = recipe.model.encoder, recipe.training.encoder
    if not (find_encoder(name).has_sam2_weights or weights == "none" or run_of_weights(weights)):
        raise ConfigError(
            f"--weights {weights}: SAM2's weights do not fit model.encoder={name}; give none, or a run that has it"
        )
    if how in ("lora", "last_stage") and weights == "none":
        raise ConfigError(f"training.encoder={how} adapts a pre-trained encoder, and --weights none gives none")
    if how == "lora":
        require_lora()


def _freeze(network: SAM2For3dMed, record: Sam2Record) -> None:
    """Freeze the parts of the encoder that do not train."""
    training = record.recipe.training
    if training.encoder == "lora":
        add_lora(network.encoder, training.lora_rank)
    elif training.encoder == "last_stage":
        train_last_stage(network.encoder)
    elif training.encoder == "frozen":
        network.encoder.freeze()


def _from_scratch(wanted: NetworkConfig, plan: Plan) -> tuple[SAM2For3dMed, NetworkConfig, str]:
    """Returns: the network, its complete config, and how its encoder learns if the recipe says `auto`."""
    given: dict[str, Any] = {}
    if wanted.no_memory_token is None:
        given["no_memory_token"] = wanted.memory != "none"
    if wanted.size == "auto":
        where, given["size"] = ("GPU", "tiny") if torch.cuda.is_available() else ("CPU", "nano")
        logger.info("model.size is auto: from scratch on a %s, so %s", where, given["size"])
    config = complete(wanted.model_copy(update=given))
    return build_network(config, plan.num_classes), config, "train"


def _from_sam2(wanted: NetworkConfig, plan: Plan, source: str) -> tuple[SAM2For3dMed, NetworkConfig, str]:
    """As `_from_scratch`, with SAM2's weights."""
    found = read_sam2(source)
    dictated = {"size": found.size, "channels": SIZES[found.size].channels, "pointer_time": found.pointer_time}
    config = _of_weights(wanted, source, **dictated, no_memory_token=False)
    network = build_network(config, plan.num_classes)
    load_sam2(network, found)
    return network, config, "frozen"


def _from_run(wanted: NetworkConfig, plan: Plan, folder: Path, name: str) -> tuple[SAM2For3dMed, NetworkConfig, str]:
    """As `_from_scratch`, with the weights of a run, which messages call by this name.

    Parts that it lacks start fresh, and so do those of the classes if their number differs. Of a promptable network
    only the encoder is taken, since the rest has learnt to follow prompts.
    """
    record = read_sam2_record(folder, "--weights")
    old = record.recipe.model
    follows_prompts = old.promptable and not wanted.promptable
    dictated = {key: getattr(old, key) for key in ("encoder", "size", "channels")}
    if not follows_prompts:
        dictated |= {key: getattr(old, key) for key in ("pointer_time", "no_memory_token")}
    elif wanted.no_memory_token is None:
        dictated["no_memory_token"] = wanted.memory != "none"
    if wanted.image_size is None:
        wanted = wanted.model_copy(update={"image_size": old.image_size})
    config = _of_weights(wanted, name, **dictated)
    network = build_network(config, plan.num_classes)
    state = read_weights(folder / MODEL_FILE)
    before, now = record.plan.num_classes, plan.num_classes
    if follows_prompts:
        logger.info("%s follows prompts: its encoder is taken, and the rest starts fresh", name)
        state = network.state_dict() | {key: tensor for key, tensor in state.items() if key.startswith("encoder.")}
    elif before != now:
        logger.info("%s has %d classes, this data %d: their parts start fresh", name, before, now)
        fresh = {name: tensor for name, tensor in network.state_dict().items() if "class_" in name}
        state = {name: tensor for name, tensor in state.items() if "class_" not in name} | fresh
    others = [f"model.{key}={value}" for key, value in old if getattr(config, key) != value]
    fresh = network.state_dict()
    if others and state.keys() != fresh.keys():
        logger.info("%s has %s: parts that it lacks start fresh, and others are left out", name, ", ".join(others))
        state = fresh | {name: tensor for name, tensor in state.items() if name in fresh}
    fill_network(network, state, folder / MODEL_FILE)
    return network, config, "train" if record.recipe.training.encoder == "train" else "frozen"


def _of_weights(wanted: NetworkConfig, source: str, **dictated: Any) -> NetworkConfig:
    """Complete a config with what the weights dictate; a WeightsError if it asks for something else."""
    for key, value in dictated.items():
        if getattr(wanted, key) not in (None, "auto", value):
            raise WeightsError(f"{source}: these weights need model.{key}={value}, not {getattr(wanted, key)}")
    return complete(wanted.model_copy(update=dictated))
