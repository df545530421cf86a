"""A pre-trained encoder that adapts in part, beyond the paper: by LoRA, or by its last stage."""

import importlib.util

from sam2_3dmed.encoders.image_encoder import ImageEncoder
from sam2_3dmed.errors import ConfigError

NEEDS_THE_EXTRA = "training.encoder=lora needs the extra: pip install 'sam2-3dmed[lora]'"


def require_lora() -> None:
    """Raise ConfigError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(NEEDS_THE_EXTRA)


def train_last_stage(encoder: ImageEncoder) -> None:
    """Freeze everything but the coarsest stage and the maps from it to Z.

    The finer pyramid levels stay frozen: the decoders' own projections, which train, follow them directly.
    """
    encoder.freeze(but=encoder.vision_encoder.last_stage())


def add_lora(encoder: ImageEncoder, rank: int) -> None:
    """Freeze the encoder, and add a trained product to each weight W that LoRA adapts: W + B A.

    A (rank, in) starts random and B (out, rank) at zero, so nothing changes before the first step. Hu et al. 2021,
    arXiv 2106.09685, with alpha = rank.

    Raises:
        ConfigError: peft is not installed.
    """
    require_lora()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    network = encoder.vision_encoder
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=network.lora_targets), network)
    layers = [module for module in encoder.modules() if isinstance(module, LoraLayer)]
    encoder.freeze(but=[matrices for layer in layers for matrices in (layer.lora_A, layer.lora_B)])


def merge_lora(encoder: ImageEncoder) -> None:
    """Replace W by W + B A, which leaves a plain, frozen encoder."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
    encoder.freeze()
