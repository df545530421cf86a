"""The widths and depths of SAM2's four sizes, and of `nano`, the same architecture cut down for CPUs."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """Everything in which two sizes differ; the defaults are SAM2's Hiera-Tiny.

    Four entries a stage of the encoder, finest first. `global_blocks` counts blocks through all stages.
    """

    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    blocks: tuple[int, int, int, int] = (1, 2, 7, 2)
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7
    channels: int = 256
    """C; a multiple of 64, since upstream fixes the memories' width at 64."""
    feed_forward: int = 2048
    memory_attention_layers: int = 4
    memory_fuser_layers: int = 2
    image_size: int = 512


SIZES: dict[str, ModelSize] = {
    "nano": ModelSize(
        widths=(24, 48, 96, 192),
        blocks=(1, 1, 2, 1),
        windows=(8, 4, 8, 4),
        global_blocks=(3,),
        channels=64,
        feed_forward=256,
        memory_attention_layers=1,
        memory_fuser_layers=1,
        image_size=96,
    ),
    "tiny": ModelSize(),
    "small": ModelSize(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": ModelSize(
        widths=(112, 224, 448, 896),
        blocks=(2, 3, 16, 3),
        heads=(2, 4, 8, 16),
        global_blocks=(12, 16, 20),
        background=14,
    ),
    "large": ModelSize(
        widths=(144, 288, 576, 1152),
        blocks=(2, 6, 36, 4),
        heads=(2, 4, 8, 16),
        windows=(8, 4, 16, 8),
        global_blocks=(23, 33, 43),
    ),
}


def sam2_config(size: ModelSize, image_size: int) -> Any:
    """The `transformers` configuration of a size, for H = W = `image_size` pixels (a multiple of 32).

    Every place that holds the image size is set: upstream copies it to none of the others. Dropout is off: in memory
    attention it costs 60% more saved activations.
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
        vision_config=_vision_config(size, image_size),
        prompt_encoder_config=upstream.Sam2VideoPromptEncoderConfig(hidden_size=size.channels, image_size=image_size),
        mask_decoder_config=upstream.Sam2VideoMaskDecoderConfig(
            hidden_size=size.channels, mlp_dim=size.feed_forward, iou_head_hidden_dim=size.channels
        ),
    )


def _vision_config(size: ModelSize, image_size: int) -> Any:
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig

    grid = image_size // 16
    backbone = Sam2HieraDetConfig(
        hidden_size=size.widths[0],
        image_size=[image_size, image_size],
        num_attention_heads=size.heads[0],
        embed_dim_per_stage=list(size.widths),
        blocks_per_stage=list(size.blocks),
        num_attention_heads_per_stage=list(size.heads),
        window_size_per_stage=list(size.windows),
        global_attention_blocks=list(size.global_blocks),
        window_positional_embedding_background_size=[size.background] * 2,
    )
    return Sam2VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=size.channels,
        backbone_channel_list=list(reversed(size.widths)),
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
    )
