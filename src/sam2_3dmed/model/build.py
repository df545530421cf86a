"""The network from plain numbers: everything is built here, in one place, and injected."""

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sam2_3dmed.encoders.hiera import VisionEncoder
from sam2_3dmed.encoders.image_encoder import ImageEncoder
from sam2_3dmed.model.boundary import BoundaryDetector, BoundaryFusion
from sam2_3dmed.model.mask_decoder import ClassHypernetworks, MaskDecoder
from sam2_3dmed.model.memory_attention import MemoryAttention
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.sizes import SIZES, sam2_config
from sam2_3dmed.model.slice_decoder import MEMORY_CHANNELS, SliceDecoder
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


def build_network(
    *,
    size: str,
    image_size: int,
    num_classes: int,
    srpp: bool = True,
    share_context: bool = True,
    srpp_memory: bool = False,
    boundary: bool = True,
    boundary_fusion: bool = True,
    fusion_residual: bool = False,
    pointer_time: bool = True,
    memory: str = "recent",
    box_every: int = 0,
    no_memory_token: bool = False,
    channels: int | None = None,
) -> SAM2For3dMed:
    """A network with fresh weights, made for training from scratch; `weights.load_sam2` puts SAM2's in.

    size: a key of SIZES; image_size: H = W in pixels, a multiple of 32; num_classes: K. The switches are those of the
    paper's ablations; pointer_time: false for SAM 2.0 weights; memory: `recent`, SAM2's bank, or `self_sorting`,
    MedSAM-2's; box_every: see `SAM2For3dMed`; no_memory_token: see `SliceDecoder`, not for SAM2's weights; channels: C,
    none for the size's.
    """
    channels = channels or SIZES[size].channels
    config = sam2_config(replace(SIZES[size], channels=channels), image_size)
    encoder = _encoder(config.vision_config, image_size)
    grid = image_size // 16
    about: dict[str, Any] = {
        "pointer_time": pointer_time,
        "self_sorting": memory == "self_sorting",
        "takes_boxes": box_every > 0,
        "no_memory_token": no_memory_token,
    }
    segmentation = _slice_decoder(config, grid, num_classes, **about)
    detector = None
    if boundary:
        position = _sine(channels, grid)
        fusion = BoundaryFusion(channels, position, attention=boundary_fusion, residual=fusion_residual)
        detector = BoundaryDetector(_slice_decoder(config, grid, num_classes, **about), fusion)
    predictor = (
        SliceRelativePositionPredictor(channels, share_context=share_context, causal=srpp_memory) if srpp else None
    )
    for part in (encoder, segmentation, *([detector.decoder] if detector else [])):
        initialise(part)
    return SAM2For3dMed(
        encoder=encoder, segmentation=segmentation, srpp=predictor, boundary=detector, box_every=box_every
    )


def _encoder(config: Any, image_size: int) -> ImageEncoder:
    from transformers import Sam2VisionModel

    return ImageEncoder(VisionEncoder(Sam2VisionModel(config), image_size), image_size)


def _sine(channels: int, grid: int) -> Tensor:
    """(1, h w, C): SAM2's code of each place, as tokens."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPositionEmbeddingSine

    encoding = Sam2VideoPositionEmbeddingSine(num_position_features=channels // 2, normalize=True)
    plane: Tensor = encoding(torch.Size((1, channels, grid, grid)), torch.device("cpu"), torch.float32)
    return plane.flatten(2).transpose(1, 2).contiguous()


def _slice_decoder(
    config: Any,
    grid: int,
    num_classes: int,
    *,
    pointer_time: bool,
    self_sorting: bool,
    takes_boxes: bool,
    no_memory_token: bool,
) -> SliceDecoder:
    from transformers.models.sam2_video import modeling_sam2_video as upstream

    config._attn_implementation = config.mask_decoder_config._attn_implementation = "sdpa"
    channels = config.memory_attention_hidden_size
    mask_decoder = MaskDecoder(
        transformer=upstream.Sam2VideoTwoWayTransformer(config.mask_decoder_config),
        upscale_layer_norm=upstream.Sam2VideoLayerNorm(channels // 4, data_format="channels_first"),
        positional_embedding=upstream.Sam2VideoPositionalEmbedding(config.prompt_encoder_config),
        channels=channels,
        num_classes=num_classes,
        iou_prediction_head=_iou_head(config.mask_decoder_config) if self_sorting else None,
        takes_boxes=takes_boxes,
    )
    return SliceDecoder(
        memory_attention=MemoryAttention(
            channels=channels,
            feed_forward=config.memory_attention_feed_forward_hidden_size,
            num_layers=config.memory_attention_num_layers,
            grid=grid,
            memory_channels=MEMORY_CHANNELS,
            theta=config.rope_parameters["rope_theta"],
        ),
        memory_encoder=upstream.Sam2VideoMemoryEncoder(config),
        mask_decoder=mask_decoder,
        object_pointer_proj=upstream.Sam2VideoFeedForward(channels, channels, channels, 3),
        place_code=_sine(channels, grid),
        memory_code=_sine(MEMORY_CHANNELS, grid),
        channels=channels,
        num_classes=num_classes,
        pointer_time=pointer_time,
        self_sorting=self_sorting,
        no_memory_token=no_memory_token,
    )


def _iou_head(config: Any) -> nn.Module:
    """SAM2's, for its single mask and the three others."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoFeedForward

    num_masks = config.num_multimask_outputs + 1
    width, depth = config.iou_head_hidden_dim, config.iou_head_depth
    head: nn.Module = Sam2VideoFeedForward(config.hidden_size, width, num_masks, depth, sigmoid_output=True)
    return head


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Weights to train from: fan-in scaled linear maps and convolutions, small embeddings.

    Upstream draws every weight with standard deviation 0.02, made for width 256 and days of training: at nano's widths
    the signal fades within a few layers. It also zeroes the position embeddings and the fuser's scale.
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
    """What memory attention reads counts for nothing at first: memories that say nothing yet disturb nobody."""
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
