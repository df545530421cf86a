"""`build_network`: the network of a `NetworkConfig`, with the decoders' widths and depths for each size."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.encoders.image_encoder import ImageEncoder
from sam2_3dmed.encoders.registry import find_encoder
from sam2_3dmed.model.boundary import BoundaryDetector, BoundaryFusion
from sam2_3dmed.model.mask_decoder import ClassHypernetworks, MaskDecoder
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.slice_decoder import SliceDecoder, sine_encoding
from sam2_3dmed.model.slice_mixing import SliceMixer
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


@dataclass(frozen=True)
class DecoderSize:
    """Everything after the encoder in which two sizes differ; the defaults are SAM2's."""

    channels: int = 256  # a multiple of 64, since upstream fixes the width of memories at 64
    feed_forward: int = 2048
    memory_attention_layers: int = 4
    memory_fuser_layers: int = 2
    image_size: int = 512  # the default H = W in pixels


SIZES: dict[str, DecoderSize] = {
    "nano": DecoderSize(channels=64, feed_forward=256, memory_attention_layers=1, memory_fuser_layers=1, image_size=96),
    **dict.fromkeys(("tiny", "small", "base_plus", "large"), DecoderSize()),
}
"""SAM2's four sizes, and `nano` for CPUs. Encoders have their own tables."""


def sam2_config(size: DecoderSize, image_size: int, vision_config: Any = None) -> Any:
    """The `transformers` configuration of the decoders, for H = W = `image_size` pixels.

    Dropout is off: in memory attention it costs 60% more saved activations. A whole model of upstream's also takes the
    encoder's `vision_config`.
    """
    from transformers.models.sam2_video import configuration_sam2_video as upstream

    return upstream.Sam2VideoConfig(
        image_size=image_size,
        memory_attention_rope_feat_sizes=[image_size // 16] * 2,
        memory_attention_hidden_size=size.channels,
        memory_attention_feed_forward_hidden_size=size.feed_forward,
        memory_attention_num_layers=size.memory_attention_layers,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=size.channels,
        mask_downsampler_embed_dim=size.channels,
        memory_fuser_embed_dim=size.channels,
        memory_fuser_num_layers=size.memory_fuser_layers,
        memory_fuser_intermediate_dim=4 * size.channels,
        vision_config=vision_config,
        prompt_encoder_config=upstream.Sam2VideoPromptEncoderConfig(hidden_size=size.channels, image_size=image_size),
        mask_decoder_config=upstream.Sam2VideoMaskDecoderConfig(
            hidden_size=size.channels, mlp_dim=size.feed_forward, iou_head_hidden_dim=size.channels
        ),
    )


def complete(config: NetworkConfig) -> NetworkConfig:
    """Fill in what is none: numbers of the size, and switches as in SAM 2.1."""
    size = SIZES[config.size]
    values = {"image_size": size.image_size, "channels": size.channels, "pointer_time": True, "no_memory_token": False}
    return config.model_copy(update={key: value for key, value in values.items() if getattr(config, key) is None})


def build_network(config: NetworkConfig, num_classes: int) -> SAM2For3dMed:
    """Build a network for K classes with fresh weights; `weights.load_sam2` replaces them by SAM2's.

    The size in the config is not `auto`. What is none there is filled in by `complete`.
    """
    config = complete(config)
    assert config.image_size is not None
    assert config.channels is not None
    image_size, channels = config.image_size, config.channels
    sam2 = sam2_config(replace(SIZES[config.size], channels=channels), image_size)
    sam2._attn_implementation = sam2.mask_decoder_config._attn_implementation = "sdpa"

    def slice_decoder() -> SliceDecoder:
        return _slice_decoder(config, sam2, num_classes)

    encoder = ImageEncoder(find_encoder(config.encoder).build(config.size, image_size, channels), image_size)
    segmentation = slice_decoder()
    boundary = srpp = None
    if config.boundary:
        position = sine_encoding(channels, image_size // 16)
        fusion = BoundaryFusion(channels, position, attention=config.boundary_fusion, residual=config.fusion_residual)
        boundary = BoundaryDetector(slice_decoder(), fusion)
    if config.srpp:
        srpp = SliceRelativePositionPredictor(channels, share_context=config.share_context, causal=config.srpp_memory)
    for part in (encoder, segmentation, *([boundary.decoder] if boundary else [])):
        initialise(part)
    mixer = SliceMixer(channels, depthwise=True) if config.slice_mixing else None
    return SAM2For3dMed(
        encoder=encoder,
        segmentation=segmentation,
        srpp=srpp,
        boundary=boundary,
        mixer=mixer,
        box_every=config.box_every,
        promptable=config.promptable,
    )


def _slice_decoder(config: NetworkConfig, sam2: Any, num_classes: int) -> SliceDecoder:
    self_sorting = config.memory == "self_sorting"
    mask_decoder = MaskDecoder(
        sam2,
        num_classes,
        predicts_iou=self_sorting,
        takes_points=config.box_every > 0 or config.promptable,
        takes_masks=config.promptable,
        prompt_maps=config.promptable and config.prompt_maps,
        slice_mixing=config.slice_mixing,
    )
    return SliceDecoder(
        sam2,
        mask_decoder,
        pointer_time=bool(config.pointer_time),
        self_sorting=self_sorting,
        no_memory_token=bool(config.no_memory_token),
        memory_pooling=config.memory_pooling,
        has_memory=config.memory != "none",
    )


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw weights to train from: fan-in scaled linear maps and convolutions, small embeddings.

    Upstream draws every weight with standard deviation 0.02, which suits width 256 and days of training. At nano's
    widths the signal would fade within a few layers. Upstream also zeroes the position embeddings and the fuser's
    scale.
    """
    for child in module.modules():
        _draw(child)
    for name, parameter in module.named_parameters():
        if name.endswith(("pos_embed", "pos_embed_window", "temporal_positional_encoding", "no_memory_embedding")):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif re.search(r"memory_fuser\.layers\.\d\.scale$", name):
            nn.init.constant_(parameter, 0.1)
        elif "prompt_maps." in name or name.endswith("class_memory.weight"):  # as slice mixing, they start at zero
            nn.init.zeros_(parameter)
    if isinstance(module, SliceDecoder) and module.no_memory_token:
        nn.init.normal_(module.no_memory_embedding, std=0.5)
        # Cross-attention to memories starts at zero, so that memories without information do no harm.
        for name, weight in module.memory_attention.named_parameters():
            if name.endswith("cross_attn_image.o_proj.weight"):
                nn.init.zeros_(weight)


def _draw(layer: nn.Module) -> None:
    if isinstance(layer, nn.Embedding):
        nn.init.normal_(layer.weight, std=0.5)
    elif isinstance(layer, ClassHypernetworks):
        for weight in layer.weights:
            nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
    elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        # A transposed convolution of stride 2 and kernel 2 has one tap an output pixel; its weight is (in, out, 2, 2).
        transposed = isinstance(layer, nn.ConvTranspose2d)
        fan_in = layer.weight.shape[0] if transposed else math.prod(layer.weight.shape[1:])
        nn.init.trunc_normal_(layer.weight, std=fan_in**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
