"""Recipes by name: presets, ablations, additions, and the systems of Table 1 that are variants of our network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from sam2_3dmed.config.parsing import parse
from sam2_3dmed.config.schema import RunConfig
from sam2_3dmed.errors import ConfigError, shown, suggest
from sam2_3dmed.files.structured import parse_yaml, read_yaml

Config = TypeVar("Config", bound=BaseModel)


def _change(config: RunConfig, section: str, **values: Any) -> RunConfig:
    part = getattr(config, section)
    return config.model_copy(update={section: part.model_copy(update=values)})


def _change_terms(config: RunConfig, **weights: float) -> RunConfig:
    return _change(config, "loss", terms=config.loss.terms | weights)


def _segmentation_loss(config: RunConfig, **weights: float) -> RunConfig:
    """Replace the terms of L_seg. The terms of SRPP and BD stay."""
    others = {name: weight for name, weight in config.loss.terms.items() if name in ("relative_position", "boundary")}
    return _change(config, "loss", terms=weights | others)


def paper() -> RunConfig:
    """The recipe of the paper's appendix B, as printed (D comes from the plan or `slab_slices`)."""
    return RunConfig()


ABLATIONS: Mapping[str, Callable[[RunConfig], RunConfig]] = {
    "without_pretraining": lambda c: _change(c, "training", encoder="train"),
    "without_srpp": lambda c: _change(c, "model", srpp=False),
    "without_shared_context": lambda c: _change(c, "model", share_context=False),
    "with_srpp_memory": lambda c: _change(c, "model", srpp_memory=True),
    "without_boundary": lambda c: _change(c, "model", boundary=False),
    "without_boundary_fusion": lambda c: _change(c, "model", boundary_fusion=False),
    "slices_3": lambda c: c.model_copy(update={"slab_slices": 3}),
    "slices_6": lambda c: c.model_copy(update={"slab_slices": 6}),
    "slices_12": lambda c: c.model_copy(update={"slab_slices": 12}),
    "srpp_weight_0.03": lambda c: _change_terms(c, relative_position=0.03),
    "srpp_weight_0.05": lambda c: _change_terms(c, relative_position=0.05),
    "boundary_weight_0.3": lambda c: _change_terms(c, boundary=0.3),
    "boundary_weight_0.5": lambda c: _change_terms(c, boundary=0.5),
    "forward_only": lambda c: _change(c, "inference", direction="forward"),
    "backward_only": lambda c: _change(c, "inference", direction="backward"),
}
"""The rows of the paper's Tables 2-9, and two directions. `without_pretraining` needs `--weights none`."""


def _sam2(config: RunConfig) -> RunConfig:
    config = _change(config, "model", srpp=False, boundary=False)
    config = _change(config, "augmentation", reverse=0.0)
    return _change(config, "inference", direction="forward")


def _medsam2(config: RunConfig) -> RunConfig:
    config = _change(_sam2(config), "model", memory="self_sorting")
    return _change(config, "inference", mode="stream")


BASELINES: Mapping[str, Callable[[RunConfig], RunConfig]] = {
    "sam2": _sam2,
    "medsam2": _medsam2,
    "medsam2_boxes": lambda c: _change(_medsam2(c), "model", box_every=2),
}
"""Systems of the paper's Table 1. `sam2` is SAM2 after fine-tuning: no SRPP, no BD, slices in one direction. `medsam2`
adds MedSAM-2's memory; a volume is one stream, since a slab is too short to fill that memory. `medsam2_boxes` adds a
box from the reference on every second slice, as its authors run it. It must not be compared with systems without
prompts, since its boxes give half of the answer."""


def _adapted(config: RunConfig, how: str, encoder_rate: float, layer_decay: float = 1.0) -> RunConfig:
    if config.training.encoder not in ("auto", how):
        raise ConfigError(f"{config.training.encoder} and {how} exclude each other")
    return _change(config, "training", encoder=how, encoder_rate=encoder_rate, layer_decay=layer_decay)


def _slice_mixing(config: RunConfig) -> RunConfig:
    """Mixers look both ways, so that a stream in one direction shows every slice its neighbours on both sides."""
    return _change(_change(config, "model", slice_mixing=True), "inference", mode="stream", direction="forward")


ADDITIONS: Mapping[str, Callable[[RunConfig], RunConfig]] = {
    "lora": lambda c: _adapted(c, "lora", encoder_rate=5.0),
    "last_stage": lambda c: _adapted(c, "last_stage", encoder_rate=0.6, layer_decay=0.9),
    "slice_mixing": _slice_mixing,
    "without_memory": lambda c: _change(c, "model", memory="none"),
    "pooled_memory": lambda c: _change(c, "model", memory_pooling=2),
    "ema": lambda c: _change(c, "training", ema_decay=0.999),
    "bce": lambda c: _segmentation_loss(c, bce=1.0),
    "dice_bce": lambda c: _segmentation_loss(c, dice=1.0, bce=1.0),
    "focal_dice": lambda c: _segmentation_loss(c, focal=20.0, dice=1.0),
    "focal_tversky": lambda c: _segmentation_loss(c, focal_tversky=1.0),
}
"""Beyond the paper: ways to adapt a pre-trained encoder, slices that learn from their neighbours instead of or beside
SAM2's memory, that memory with a quarter of its tokens, a moving average of the weights, and other forms of L_seg
(`focal_dice` is SAM2's). The rates of `last_stage` are those of SAM2's own fine-tuning. Measurements:
`docs/notes/adapting_the_encoder.md`."""


def paper_scratch() -> RunConfig:
    """The paper's network without pre-trained weights: `paper` with what was better on validation cases of real data.

    The figures are in `docs/notes/scratch_preset.md`, which also lists the choices that were not compared.
    """
    config = _segmentation_loss(paper(), dice=1.0, bce=1.0)
    config = _change(config, "model", fusion_residual=True)
    config = _change(config, "inference", flips=True, shifts=True)
    config = _change(config, "augmentation", rotation_degrees=15.0, shear_degrees=5.0, noise=0.2, blur=0.2, mosaic=0.0)
    return _change(
        config,
        "training",
        epochs=34,
        single_slice_fraction=0.75,
        slab_rate=0.25,
        samples_per_epoch=400,
        batch_size=8,
        optimizer="muon",
        learning_rate=1.8e-3,
        warmup_fraction=0.05,
        validate_every=17,
        patience=None,
    )


def scratch() -> RunConfig:
    """For training without pre-trained weights: slices learn from each other through slice mixing, on long slabs.

    Memory attention, SRPP and BD are off: without them it was better in the same time on validation cases of real data.
    The figures are in `docs/notes/what_moved_accuracy.md`.
    """
    config = _change(_slice_mixing(paper_scratch()), "model", memory="none", srpp=False, boundary=False)
    training = {"epochs": 42, "samples_per_epoch": 200, "batch_size": 2, "validate_every": 21}
    config = _change(config, "training", single_slice_fraction=0.0, slab_rate=1.0, **training)
    return config.model_copy(update={"slab_slices": 24})


def few_labels() -> RunConfig:
    """For a few labelled scans: `scratch` with more augmentation and a moving average of the weights.

    The figures are in `docs/how_to/few_labels.md`.
    """
    config = _change(scratch(), "augmentation", scale=0.2, elastic=0.06, intensity=0.3)
    return _change(config, "training", ema_decay=0.99)


def pretrain() -> RunConfig:
    """For `pretrain`: the network of `scratch`, promptable and with memory, which carries a prompt to all slices."""
    config = _change(scratch(), "model", promptable=True, prompt_maps=True, memory="recent")
    config = _change(config, "inference", flips=False, shifts=False)
    return _change(config, "training", epochs=100, samples_per_epoch=400, validate_every=5)


def auto(from_scratch: bool) -> RunConfig:
    """The default: `scratch` without pre-trained weights, and `paper` with them, since nothing was measured there."""
    return scratch() if from_scratch else paper()


PRESETS: Mapping[str, Callable[[bool], RunConfig]] = {
    "auto": auto,
    "paper": lambda from_scratch: paper(),
    "scratch": lambda from_scratch: scratch(),
    "paper_scratch": lambda from_scratch: paper_scratch(),
    "few_labels": lambda from_scratch: few_labels(),
    "pretrain": lambda from_scratch: pretrain(),
}
"""By name. The argument is whether training starts from scratch."""


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Apply each `section.key=value` of the command line to a config; a value is YAML, or `none`."""
    data = config.model_dump()
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {setting}: expected section.key=value, such as training.epochs=50")
        *sections, last = key.split(".")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {setting}: {section} has no keys below it")
        target[last] = None if text.strip().lower() == "none" else parse_yaml(text, f"--set {setting}")
    result: Config = parse(data, type(config), "--set")
    return result


def read_recipe(name_or_path: str, *, from_scratch: bool = False) -> RunConfig:
    """Read a recipe: a preset with changes after plus signs, such as `paper+without_srpp`, or a YAML file.

    A YAML file starts from the preset of its key `preset`, else from `auto`. Its other keys replace the preset's.

    Raises: ConfigError for no such name or file, changes that exclude each other, or mistakes in the file.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return _read_recipe_file(Path(name_or_path), from_scratch)
    return _read_preset(name_or_path, from_scratch)


def _read_preset(text: str, from_scratch: bool) -> RunConfig:
    name, *changes = text.split("+")
    config = _named(PRESETS, name, "preset")(from_scratch)
    for change in changes:
        config = _named({**ABLATIONS, **ADDITIONS, **BASELINES}, change, "ablation or addition")(config)
    return config


def _named(table: Mapping[str, Callable[..., RunConfig]], name: str, kind: str) -> Callable[..., RunConfig]:
    if name not in table:
        raise ConfigError(f"no {kind} {shown(name)}; {suggest(name, table)}")
    return table[name]


def _read_recipe_file(path: Path, from_scratch: bool) -> RunConfig:
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    try:
        base = _read_preset(str(data.pop("preset", "auto")), from_scratch).model_dump()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if both else value
    config: RunConfig = parse(base, RunConfig, str(path))
    return config
