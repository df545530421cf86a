#!/usr/bin/env bash
# transformers 5.23.0: `Sam2VideoModel` accepts a width equal to its memory's and then fails at the second frame.
#
# SAM2's features have 256 channels and its memories 64, so an object pointer is cut into four tokens of 64. A small
# model may have 64 channels throughout (memory_attention_hidden_size = memory_encoder_output_channels = 64), which the
# configuration accepts, and the first frame passes. From the second frame on, pointers are joined with memories. They
# are reshaped only where the memory is narrower than the features. Otherwise a pointer keeps the axis of its object,
# and torch.cat refuses 3 and 4 axes. At 128 channels the same model tracks on.
#
# Seen: frames that pass at 128 channels: 3 of 3; at 64 channels: 1 of 3, then "Tensors must have same number of
# dimensions: got 3 and 4". Who trains a narrow SAM2 cannot compare it with upstream's own propagation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  transformers==5.23.0 torch==2.13.0 numpy==2.4.6 pillow==12.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

transformers.logging.set_verbosity_error()
SIZE = 128


def make(channels: int) -> Sam2VideoModel:
    """A small random model whose features have this many channels; memories always have 64."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 24,
        "image_size": [SIZE, SIZE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [24, 48, 96, 192],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [192, 96, 48, 24],
        "backbone_feature_sizes": [[SIZE // 4] * 2, [SIZE // 8] * 2, [SIZE // 16] * 2],
        "fpn_hidden_size": channels,
    }
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=channels, image_size=SIZE),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=channels, mlp_dim=64, iou_head_hidden_dim=channels
        ),
        image_size=SIZE,
        memory_attention_hidden_size=channels,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[SIZE // 16] * 2,
        memory_encoder_hidden_size=channels,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=64,
        memory_fuser_num_layers=1,
    )
    torch.manual_seed(0)
    return Sam2VideoModel(config).eval()


def frames_that_pass(model: Sam2VideoModel) -> tuple[int, str]:
    video = torch.rand(3, 3, SIZE, SIZE)
    session = Sam2VideoInferenceSession(video=video, video_height=SIZE, video_width=SIZE, dtype=torch.float32)
    session.obj_id_to_idx(1)
    for frame in range(3):
        session.obj_with_new_inputs = [1] if frame == 0 else []
        try:
            with torch.inference_mode():
                model(session, frame_idx=frame)
        except RuntimeError as error:
            return frame, str(error)
    return 3, ""


print("transformers", transformers.__version__)
wide, narrow = frames_that_pass(make(128)), frames_that_pass(make(64))
print("128 channels:", *wide)
print("64 channels:", *narrow)
assert wide == (3, ""), "transformers behaves otherwise now"
assert narrow[0] == 1 and "got 3 and 4" in narrow[1], "transformers behaves otherwise now"
PYTHON
