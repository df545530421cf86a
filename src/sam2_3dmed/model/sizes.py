"""The decoders' widths and depths for each size: SAM2's four, and `nano` for CPUs. Encoders have their own tables."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderSize:
    """Everything after the encoder in which two sizes differ; the defaults are SAM2's.

    Attributes:
        channels: C, a multiple of 64, since upstream fixes the width of memories at 64.
        image_size: the default H = W in pixels.
    """

    channels: int = 256
    feed_forward: int = 2048
    memory_attention_layers: int = 4
    memory_fuser_layers: int = 2
    image_size: int = 512


SIZES: dict[str, DecoderSize] = {
    "nano": DecoderSize(channels=64, feed_forward=256, memory_attention_layers=1, memory_fuser_layers=1, image_size=96),
    **dict.fromkeys(("tiny", "small", "base_plus", "large"), DecoderSize()),
}


def sam2_config(size: DecoderSize, image_size: int, vision_config: Any = None) -> Any:
    """The `transformers` configuration of the decoders, with the image size in every field that holds it.

    Dropout is off: in memory attention it costs 60% more saved activations.

    Args:
        size: an entry of SIZES.
        image_size: H = W in pixels, a multiple of 32.
        vision_config: of the encoder, for a whole model of upstream's.
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
