"""The configuration says the image size in every place that upstream reads it from, and shapes follow."""

from dataclasses import replace

import pytest

from sam2_3dmed.encoders.conv import CONV_SIZES
from sam2_3dmed.encoders.hiera import HIERA_SIZES, hiera_config
from sam2_3dmed.model.build import SIZES, sam2_config


def whole_config(name: str, image_size: int):
    return sam2_config(SIZES[name], image_size, hiera_config(HIERA_SIZES[name], image_size, SIZES[name].channels))


def test_the_sizes_are_sam2s_four_and_ours() -> None:
    assert set(SIZES) == set(HIERA_SIZES) == set(CONV_SIZES) == {"nano", "tiny", "small", "base_plus", "large"}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_consistent(name: str) -> None:
    size, hiera = SIZES[name], HIERA_SIZES[name]
    assert size.channels % 64 == 0  # pointers are split into tokens of the memories' width
    assert size.channels % 8 == 0
    assert all(width % heads == 0 for width, heads in zip(hiera.widths, hiera.heads, strict=True))
    assert all(0 < block < sum(hiera.blocks) for block in hiera.global_blocks)
    assert size.image_size % 32 == 0


@pytest.mark.parametrize("name", SIZES)
def test_no_two_sizes_look_alike_to_the_loader(name: str) -> None:
    def seen(size):
        return size.widths[0], sum(size.blocks)

    assert [other for other in SIZES if seen(HIERA_SIZES[other]) == seen(HIERA_SIZES[name])] == [name]


@pytest.mark.parametrize(("name", "image_size"), [("nano", 64), ("tiny", 512), ("large", 1024)])
def test_every_place_that_holds_the_image_size_is_set(name: str, image_size: int) -> None:
    config = whole_config(name, image_size)
    grid = image_size // 16
    assert config.image_size == image_size
    assert config.prompt_encoder_config.image_size == image_size
    assert list(config.memory_attention_rope_feat_sizes) == [grid, grid]
    assert [list(s) for s in config.vision_config.backbone_feature_sizes] == [[grid * k] * 2 for k in (4, 2, 1)]
    assert list(config.vision_config.backbone_config.image_size) == [image_size, image_size]


@pytest.mark.parametrize("name", SIZES)
def test_dropout_is_off_everywhere(name: str) -> None:
    config = sam2_config(SIZES[name], 64)
    assert config.memory_attention_dropout == 0
    assert config.memory_attention_rope_dropout == 0


def test_channels_reach_every_part_of_the_configuration() -> None:
    size = replace(SIZES["nano"], channels=128, feed_forward=96)
    config = sam2_config(size, 64, hiera_config(HIERA_SIZES["nano"], 64, 128))
    widths = (
        config.memory_attention_hidden_size,
        config.memory_encoder_hidden_size,
        config.mask_downsampler_embed_dim,
        config.memory_fuser_embed_dim,
        config.vision_config.fpn_hidden_size,
        config.prompt_encoder_config.hidden_size,
        config.mask_decoder_config.hidden_size,
    )
    assert set(widths) == {128}
    assert config.mask_decoder_config.mlp_dim == config.memory_attention_feed_forward_hidden_size == 96


def test_tiny_is_upstreams_default() -> None:
    from transformers import Sam2VideoConfig

    ours, theirs = whole_config("tiny", 1024), Sam2VideoConfig()
    changed = ("memory_attention_dropout", "memory_attention_rope_dropout")  # ours are off
    for config in (ours, theirs):
        for name in changed:
            setattr(config, name, 0.0)
    assert ours.to_diff_dict() == theirs.to_diff_dict()
