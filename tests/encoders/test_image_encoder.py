"""The encoder prepares slices in one way, and frozen means weights, gradients and mode."""

import pytest
import torch
import torch.nn.functional as F

from sam2_3dmed.encoders.image_encoder import IMAGENET_MEAN, IMAGENET_STD

MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def encoder(nano):
    return nano(srpp=False, boundary=False).encoder


@pytest.mark.parametrize(("channels", "rgb"), [(1, "aaa"), (2, "aba"), (3, "abc")])
def test_channels_become_red_green_blue(encoder, slab, channels: int, rgb: str) -> None:
    slices = slab(batch=2, depth=3, channels=channels)
    expected = torch.stack([slices[:, :, "abc".index(letter)] for letter in rgb], dim=2)
    torch.testing.assert_close(encoder.prepare(slices) * STD + MEAN, expected)


def test_normalisation_by_hand(encoder) -> None:
    prepared = encoder.prepare(torch.ones(1, 1, 1, 64, 64))
    assert prepared.shape == (1, 1, 3, 64, 64)
    by_hand = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(prepared[0, 0, :, 5, 9], torch.tensor(by_hand))


def test_slices_at_the_input_size_are_not_resampled(encoder, slab) -> None:
    slices = slab(channels=3)
    assert torch.equal(encoder.prepare(slices), (slices - MEAN) / STD)


@pytest.mark.parametrize("size", [(17, 40), (200, 64), (1, 1)])
def test_any_size_is_resized_in_plane(encoder, size: tuple[int, int]) -> None:
    """A constant slice stays constant and a slice never mixes with another."""
    slices = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 1, *size)
    prepared = encoder.prepare(slices)
    assert prepared.shape == (2, 3, 3, 64, 64)
    expected = (torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1) - MEAN) / STD
    torch.testing.assert_close(prepared, expected.expand_as(prepared))


def test_resizing_keeps_the_place(encoder) -> None:
    """Left and right, top and bottom, are those of the slice: a ramp along W stays one along W, of the same ends."""
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 1, 32, 128)
    plane = (encoder.prepare(ramp) * STD + MEAN)[0, 0, 0]
    assert plane.std(dim=0).max() < 1e-5
    torch.testing.assert_close(plane[0], F.avg_pool1d(ramp[0, 0, 0, :1], 2)[0], atol=0.01, rtol=0)


def test_feature_levels_have_strides_16_8_4(encoder, slab) -> None:
    features = encoder(slab(batch=2, depth=3))
    channels = features.z.shape[2]
    assert features.z.shape == (2, 3, channels, 4, 4)
    assert features.stride8.shape == (2, 3, channels, 8, 8)
    assert features.stride4.shape == (2, 3, channels, 16, 16)


def test_each_slice_is_encoded_on_its_own(encoder, slab) -> None:
    slices = slab(batch=2, depth=3)
    whole = encoder(slices)
    one = encoder(slices[1:, 2:])
    for level, alone in zip(whole, one, strict=True):
        torch.testing.assert_close(level[1:, 2:], alone, atol=1e-4, rtol=1e-4)


def test_a_fresh_encoder_trains(nano) -> None:
    encoder = nano(srpp=False, boundary=False).encoder
    assert not encoder.frozen
    assert encoder.train().vision_encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_frozen_means_gradients_and_mode(nano) -> None:
    network = nano()
    assert network.encoder.freeze() is network.encoder
    network.train()
    assert network.training
    assert network.segmentation.training
    assert not any(module.training for module in network.encoder.modules())
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_a_partly_frozen_encoder_is_not_frozen(nano) -> None:
    """Its features change from step to step, and nobody may keep them."""
    encoder = nano().encoder
    part = encoder.vision_encoder.neck
    encoder.freeze(but=[part])
    assert not encoder.frozen
    assert {p for p in encoder.parameters() if p.requires_grad} == set(part.parameters())
    assert {m for m in encoder.train().modules() if m.training} == {encoder, *part.modules()}
    assert not any(module.training for module in encoder.eval().modules())
    assert encoder.freeze().frozen
    assert not any(p.requires_grad for p in encoder.parameters())


def test_frozen_features_carry_no_graph(nano, slab) -> None:
    encoder = nano(srpp=False, boundary=False).encoder
    assert all(level.requires_grad for level in encoder(slab()))
    encoder.freeze()
    assert not any(level.requires_grad for level in encoder(slab().requires_grad_()))


def test_training_leaves_the_frozen_encoder_as_it_was(nano, slab) -> None:
    network = nano()
    network.encoder.freeze()
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    prediction = network(slab())
    (prediction.segmentation.square().mean() + prediction.boundary.square().mean()).backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    optimizer.step()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if name.startswith("encoder.")]
    assert any(name.startswith("segmentation.") for name in moved)
    assert any(name.startswith("boundary.") for name in moved)


def test_compact_features_have_the_shapes_that_are_promised_and_no_graph(nano, slab) -> None:
    encoder = nano(srpp=False, boundary=False).encoder
    compact = encoder.pre_fpn_features(slab(batch=2, depth=3))
    shapes = [(c, h, w) for h, w, c in encoder.pre_fpn_shapes]
    assert shapes == [(64, 4, 4), (48, 8, 8), (24, 16, 16)]
    assert [tuple(level.shape) for level in compact] == [(2, 3, *shape) for shape in shapes]
    assert not any(level.requires_grad for level in compact)
    assert [conv.in_channels for conv in encoder.laterals] == [48, 24]
