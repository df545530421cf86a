"""Our way through upstream's encoder gives upstream's numbers and gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.encoders.hiera import HIERA_SIZES, HieraEncoder, hiera_config


def both(size, image_size: int) -> tuple[nn.Module, HieraEncoder]:
    """Upstream's model and ours on copies of the same random weights; upstream zeroes some of them itself."""
    from transformers import Sam2VisionModel

    torch.manual_seed(0)
    made = [Sam2VisionModel(hiera_config(size, image_size, 64)) for _ in range(2)]
    for parameter in made[0].parameters():
        nn.init.normal_(parameter, std=0.1)
    made[1].load_state_dict(made[0].state_dict())
    return made[0].eval(), HieraEncoder(made[1], image_size).eval()


def levels_and_gradients(encode, parameters, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    levels = list(encode(pixels))
    weight = torch.Generator().manual_seed(1)
    loss = sum((level * torch.randn(level.shape, generator=weight)).sum() for level in levels)
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [level.detach() for level in levels], [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("image_size", [64, 96, 160], ids=["windows fit", "windows overhang", "some of both"])
def test_numbers_and_gradients_are_upstreams(image_size: int) -> None:
    """Windows of 14 and 7 places hang over every grid here, those of 8 and 4 over some."""
    size = (
        HIERA_SIZES["nano"]
        if image_size != 160
        else replace(HIERA_SIZES["nano"], windows=(8, 4, 14, 7), heads=(1, 2, 4, 8))
    )
    theirs, ours = both(size, image_size)
    pixels = torch.randn(2, 3, image_size, image_size)
    expected, expected_gradients = levels_and_gradients(
        lambda x: theirs(x).fpn_hidden_states, theirs.parameters(), pixels
    )
    found, found_gradients = levels_and_gradients(ours, ours.parameters(), pixels)
    assert len(found) == 3
    for level, other in zip(found, expected, strict=True):
        assert other.std() > 0.05
        torch.testing.assert_close(level, other, atol=1e-4, rtol=1e-4)
    assert len(found_gradients) == len(expected_gradients) > 50
    for gradient, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-3 * other.abs().max().item(), rtol=1e-3)


def test_names_are_upstreams() -> None:
    theirs, ours = both(HIERA_SIZES["nano"], 64)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_layers_hold_every_parameter_once_from_the_pixels_up(nano) -> None:
    encoder = nano().encoder.vision_encoder
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    layers = [[names[parameter] for parameter in layer] for layer in encoder.layers()]
    assert sorted(name for layer in layers for name in layer) == sorted(names.values())
    starts = ["backbone.p", *(f"backbone.blocks.{number}." for number in range(5)), "neck."]
    assert all(name.startswith(start) for layer, start in zip(layers, starts, strict=True) for name in layer)


def test_the_last_stage_is_the_widest(nano) -> None:
    encoder = nano().encoder.vision_encoder
    *blocks, coarsest, before = encoder.last_stage()
    assert blocks == [block for block in encoder.backbone.blocks if block.dim_out == 192]
    assert (coarsest.weight.shape[1], before.weight.shape[1]) == (192, 96)


@pytest.mark.parametrize(
    ("widths", "laterals"),
    [((24, 48, 96, 192), (True, True)), ((48, 96, 192, 384), (True, False)), ((64, 128, 256, 512), (False, False))],
)
def test_compact_levels_are_what_their_laterals_make_into_levels(widths, laterals: tuple[bool, bool]) -> None:
    """C is 64 here: a stage of fewer channels is kept itself, of others the level; the coarsest is always the level."""
    _, encoder = both(replace(HIERA_SIZES["nano"], widths=widths), 64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = encoder.pre_fpn_features(pixels), encoder(pixels)
    assert (encoder.lateral(0) is not None, encoder.lateral(1) is not None) == laterals
    assert encoder.channels == 64
    assert torch.equal(found[2], expected[2])
    for stage in (0, 1):
        conv = encoder.lateral(stage)
        assert found[stage].shape[1] == (64 if conv is None else widths[stage])
        level = found[stage] if conv is None else conv(found[stage])
        torch.testing.assert_close(level, expected[stage], atol=1e-4, rtol=1e-4)
