"""What training starts from: what `auto` stands for, and the recipe that fits. Nothing heavy is imported."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sam2_3dmed.config import SplitConfig
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.files.structured import read_yaml
from sam2_3dmed.model.hub import DEFAULT_HUB_ID, download
from sam2_3dmed.run.run_config import CONFIG_FILE, find_run
from sam2_3dmed.run.systems import OURS, System

FEW_CASES = 64
"""With 8 training cases `few_labels` is better than `scratch`. With 144 it learns more slowly. No other was tried."""

logger = logging.getLogger(__name__)


def find_weights(weights: str) -> str:
    """The weights that are meant: for `auto` SAM2.1 tiny if it is here or can be downloaded, else none.

    Not `nano`, from which training came less far than from scratch: docs/how_to/pretrain.md.
    """
    if weights != "auto":
        return weights
    logger.info("weights are auto: looking for %s here and on the hub", DEFAULT_HUB_ID)
    try:
        download(DEFAULT_HUB_ID)
    except WeightsError as error:
        logger.info("%s", error)
        logger.info("SAM2's weights are not to be had, so training starts from scratch")
        return "none"
    return DEFAULT_HUB_ID


def run_of_weights(weights: str) -> Path | None:
    """The run folder that weights are; None if they are no run."""
    folder = find_run(weights)
    return folder if (folder / CONFIG_FILE).is_file() else None


def recipe_for_weights(
    system: System, weights: str, name: str = "auto", settings: Sequence[str] = (), cases: int | None = None
) -> Any:
    """The recipe of a name for these weights, see `System.recipe`.

    `auto` is `few_labels` for a run of `pretrain`, and from scratch with fewer than `FEW_CASES` labelled cases. It is
    `scratch` for a run without memory, since it goes on with such a network.

    Args:
        cases: the number of labelled cases; none if it is not known yet.

    Raises:
        ConfigError: no such recipe, or an invalid setting; a run's broken config.yaml.
    """
    preset, *changes = name.split("+")
    find = partial(system.recipe, settings=settings, from_scratch=weights == "none")
    if system.name != OURS or preset != "auto":
        return find(name)
    found = find("+".join([_preset_of_run(weights) or preset, *changes]))
    if weights == "none" and cases is not None and _count(found.split, cases) < FEW_CASES:
        logger.info("fewer than %d labelled cases: the recipe is few_labels", FEW_CASES)
        return find("+".join(["few_labels", *changes]))
    return found


def _count(split: SplitConfig, cases: int) -> int:
    """How many cases have labels, or may be trained on."""
    chosen = split.training_cases
    return min(cases, len(chosen) if isinstance(chosen, tuple) else chosen or cases)


def _preset_of_run(weights: str) -> str | None:
    """The preset for weights that are a run without memory or of a promptable network; None for others."""
    folder = run_of_weights(weights)
    model: Any = read_yaml(folder / CONFIG_FILE) if folder else None
    for key in ("recipe", "model"):
        model = model.get(key) if isinstance(model, dict) else None
    if not isinstance(model, dict):
        return None
    if model.get("promptable") is True:
        return "few_labels"
    return "scratch" if model.get("memory") == "none" else None
