"""A pre-trained encoder that adapts without training all of it, beyond the paper: by adapters, or by its last stage."""

import importlib.util

from sam2_3dmed.encoders.image_encoder import ImageEncoder
from sam2_3dmed.errors import ConfigError

NEEDS_THE_EXTRA = "training.encoder=lora needs the extra: pip install 'sam2-3dmed[lora]'"
ATTENTION = r".*\.attn\.(qkv|proj)"
"""Hiera's projections into its attention and out of it."""


def require_lora() -> None:
    """Raise ConfigError, which says how to get it, unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(NEEDS_THE_EXTRA)


def train_last_stage(encoder: ImageEncoder) -> None:
    """Freeze all but Hiera's last stage and what makes Z of it.

    The finer levels of the pyramid stay: the decoders' own projections, which train, follow them at once.
    """
    encoder.freeze(but=encoder.vision_encoder.last_stage())


def add_lora(encoder: ImageEncoder, rank: int) -> None:
    """Freeze the encoder and add to each weight W of its attention a product that trains: W + B A.

    A: (rank, in), random; B: (out, rank), zero, so that nothing changes before the first step. Hu et al. 2021,
    arXiv 2106.09685, with alpha = rank.

    Raises:
        ConfigError: peft is not installed.
    """
    require_lora()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION), encoder.vision_encoder)
    layers = [module for module in encoder.modules() if isinstance(module, LoraLayer)]
    encoder.freeze(but=[matrices for layer in layers for matrices in (layer.lora_A, layer.lora_B)])


def merge_lora(encoder: ImageEncoder) -> None:
    """Put W + B A in the place of W, which leaves a plain encoder, frozen."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
    encoder.freeze()
