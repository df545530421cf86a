"""What the trainer is told."""

import torch

from sam2_3dmed.training.trainer import use_bf16


def test_bf16_is_chosen_by_hand_or_by_the_processor() -> None:
    assert use_bf16("bf16", "cpu")
    assert not use_bf16("32", "cpu")
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert use_bf16("auto", "cpu") == fast
