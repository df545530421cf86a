"""`build_network`: the network of a `NetworkConfig`."""

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.encoders.image_encoder import ImageEncoder
from sam2_3dmed.encoders.registry import find_encoder
from sam2_3dmed.model.boundary import BoundaryDetector, BoundaryFusion
from sam2_3dmed.model.mask_decoder import ClassHypernetworks, MaskDecoder
from sam2_3dmed.model.memory_attention import MemoryAttention
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.sizes import SIZES, sam2_config
from sam2_3dmed.model.slice_decoder import MEMORY_CHANNELS, SliceDecoder
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


def complete(config: NetworkConfig) -> NetworkConfig:
    """Fill in what is none: numbers of the size, and switches as in SAM 2.1."""
    size = SIZES[config.size]
    defaults = {
        "image_size": size.image_size,
        "channels": size.channels,
        "pointer_time": True,
        "no_memory_token": False,
    }
    return config.model_copy(update={key: value for key, value in defaults.items() if getattr(config, key) is None})


def build_network(config: NetworkConfig, num_classes: int) -> SAM2For3dMed:
    """Build a network with fresh weights to train from; `weights.load_sam2` replaces them by SAM2's.

    Args:
        config: the network; its size is not `auto`, and what is none is completed by `complete`.
        num_classes: K.
    """
    config = complete(config)
    assert config.image_size is not None
    assert config.channels is not None
    image_size, channels, grid = config.image_size, config.channels, config.image_size // 16
    upstream = sam2_config(replace(SIZES[config.size], channels=channels), image_size)
    encoder = ImageEncoder(find_encoder(config.encoder).build(config.size, image_size, channels), image_size)
    segmentation = _slice_decoder(upstream, config, num_classes)
    detector = None
    if config.boundary:
        position = _sine(channels, grid)
        fusion = BoundaryFusion(channels, position, attention=config.boundary_fusion, residual=config.fusion_residual)
        detector = BoundaryDetector(_slice_decoder(upstream, config, num_classes), fusion)
    predictor = None
    if config.srpp:
        predictor = SliceRelativePositionPredictor(
            channels, share_context=config.share_context, causal=config.srpp_memory
        )
    for part in (encoder, segmentation, *([detector.decoder] if detector else [])):
        initialise(part)
    return SAM2For3dMed(
        encoder=encoder, segmentation=segmentation, srpp=predictor, boundary=detector, box_every=config.box_every
    )


def _sine(channels: int, grid: int) -> Tensor:
    """(1, h w, C): SAM2's sine encoding of each position, as tokens."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPositionEmbeddingSine

    encoding = Sam2VideoPositionEmbeddingSine(num_position_features=channels // 2, normalize=True)
    plane: Tensor = encoding(torch.Size((1, channels, grid, grid)), torch.device("cpu"), torch.float32)
    return plane.flatten(2).transpose(1, 2).contiguous()


def _slice_decoder(sam2: Any, config: NetworkConfig, num_classes: int) -> SliceDecoder:
    from transformers.models.sam2_video import modeling_sam2_video as upstream

    sam2._attn_implementation = sam2.mask_decoder_config._attn_implementation = "sdpa"
    channels = sam2.memory_attention_hidden_size
    grid = sam2.memory_attention_rope_feat_sizes[0]
    self_sorting = config.memory == "self_sorting"
    mask_decoder = MaskDecoder(
        transformer=upstream.Sam2VideoTwoWayTransformer(sam2.mask_decoder_config),
        upscale_layer_norm=upstream.Sam2VideoLayerNorm(channels // 4, data_format="channels_first"),
        positional_embedding=upstream.Sam2VideoPositionalEmbedding(sam2.prompt_encoder_config),
        channels=channels,
        num_classes=num_classes,
        iou_prediction_head=_iou_head(sam2.mask_decoder_config) if self_sorting else None,
        takes_boxes=config.box_every > 0,
    )
    return SliceDecoder(
        memory_attention=MemoryAttention(
            channels=channels,
            feed_forward=sam2.memory_attention_feed_forward_hidden_size,
            num_layers=sam2.memory_attention_num_layers,
            grid=grid,
            memory_channels=MEMORY_CHANNELS,
            theta=sam2.rope_parameters["rope_theta"],
        ),
        memory_encoder=upstream.Sam2VideoMemoryEncoder(sam2),
        mask_decoder=mask_decoder,
        object_pointer_proj=upstream.Sam2VideoFeedForward(channels, channels, channels, 3),
        position_encoding=_sine(channels, grid),
        memory_position_encoding=_sine(MEMORY_CHANNELS, grid),
        channels=channels,
        num_classes=num_classes,
        pointer_time=bool(config.pointer_time),
        self_sorting=self_sorting,
        no_memory_token=bool(config.no_memory_token),
    )


def _iou_head(config: Any) -> nn.Module:
    """SAM2's head of predicted IoUs, for its single mask and the three others."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoFeedForward

    num_masks = config.num_multimask_outputs + 1
    width, depth = config.iou_head_hidden_dim, config.iou_head_depth
    head: nn.Module = Sam2VideoFeedForward(config.hidden_size, width, num_masks, depth, sigmoid_output=True)
    return head


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw weights to train from: fan-in scaled linear maps and convolutions, small embeddings.

    Upstream draws every weight with standard deviation 0.02, which suits width 256 and days of training. At nano's
    widths the signal would fade within a few layers. Upstream also zeroes the position embeddings and the fuser's
    scale.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            _initialise_map(child)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=0.5)
        elif isinstance(child, ClassHypernetworks):
            for weight in child.weights:
                nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
    _initialise_by_name(module)
    if isinstance(module, SliceDecoder) and module.no_memory_token:
        _silence_memory(module)


def _initialise_by_name(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith(("pos_embed", "pos_embed_window", "temporal_positional_encoding", "no_memory_embedding")):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif re.search(r"memory_fuser\.layers\.\d\.scale$", name):
            nn.init.constant_(parameter, 0.1)
        elif name.endswith("class_memory.weight"):  # the class path of the memory starts at zero (reading 4)
            nn.init.zeros_(parameter)


def _silence_memory(decoder: SliceDecoder) -> None:
    """Cross-attention to memories starts at zero, so that memories without information do no harm."""
    nn.init.normal_(decoder.no_memory_embedding, std=0.5)
    for name, weight in decoder.memory_attention.named_parameters():
        if name.endswith("cross_attn_image.o_proj.weight"):
            nn.init.zeros_(weight)


def _initialise_map(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    # A transposed convolution of stride 2 and kernel 2 has one tap an output pixel; its weight is (in, out, 2, 2).
    fan_in = layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.weight.shape[1:])
    nn.init.trunc_normal_(layer.weight, std=fan_in**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
