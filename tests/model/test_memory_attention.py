"""Rotary codes, and keys that age; that the whole is upstream's attention is in test_slice_decoder.py."""

import math

import pytest
import torch

from sam2_3dmed.model import memory_attention
from sam2_3dmed.model.memory_attention import MemoryAttention, apply_rope, make_rope


def test_a_pair_rope_by_its_places_angle_by_hand() -> None:
    """Four channels: the first pair rope with x, the second with y, both by one radian a place."""
    rope = make_rope(grid=3, channels=4, theta=10_000)
    place = 2 * 3 + 1  # y = 2, x = 1
    tokens = torch.zeros(1, 9, 4)
    tokens[0, place] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    expected = torch.tensor([math.cos(1), math.sin(1), -math.sin(2), math.cos(2)])
    torch.testing.assert_close(apply_rope(tokens, rope)[0, place], expected)


def test_the_frequencies_fall_from_pair_to_pair() -> None:
    rope = make_rope(grid=2, channels=8, theta=100)
    x_only = rope[1]  # y = 0, x = 1
    torch.testing.assert_close(x_only[:, 1], torch.tensor([math.sin(1), math.sin(0.1), 0.0, 0.0]))


def test_scores_depend_on_the_distance_alone() -> None:
    """The law of a rotary code, which SAM2's memories rely on."""
    rope = make_rope(grid=4, channels=16, theta=10_000)
    query, key = torch.randn(2, 1, 1, 16).expand(2, 1, 16, 16).unbind(0)
    scores = (apply_rope(query, rope) @ apply_rope(key, rope).mT)[0].view(4, 4, 4, 4)
    torch.testing.assert_close(scores[1, 1, 2, 3], scores[0, 0, 1, 2])
    torch.testing.assert_close(scores[3, 0, 1, 1], scores[2, 2, 0, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compilers_form_gives_the_same(monkeypatch, dtype) -> None:
    rope = make_rope(grid=3, channels=8, theta=10_000)
    tokens = torch.randn(2, 9, 8).to(dtype)
    eager = apply_rope(tokens, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = apply_rope(tokens, rope)
    assert eager.dtype == compiled.dtype == dtype
    torch.testing.assert_close(compiled, eager)


def test_a_temporal_code_may_be_added_before_or_after_the_projection() -> None:
    torch.manual_seed(0)
    attention = MemoryAttention(channels=16, feed_forward=32, num_layers=2, grid=3, memory_channels=8, theta=10_000)
    memory, position, temporal = torch.randn(2, 9, 8), torch.randn(1, 9, 8), torch.randn(7, 8)
    before = attention.project_spatial(memory, position + temporal[4])
    after = attention.project_spatial(memory, position)
    for layer, bias in enumerate(attention.temporal_bias(temporal)):
        torch.testing.assert_close(after[layer].keys + bias[4], before[layer].keys, atol=1e-5, rtol=1e-5)
        assert torch.equal(after[layer].values, before[layer].values)


@pytest.mark.parametrize(
    ("channels", "gradients", "bf16", "width"),
    [(128, False, False, 64), (128, True, False, 64), (128, False, True, 128), (64, True, False, 64)],
)
def test_what_is_weighed(channels: int, gradients: bool, bf16: bool, width: int) -> None:
    """The tokens themselves in float32 on a CPU, where they are narrower; else what is projected of them."""
    attention = MemoryAttention(channels=channels, feed_forward=8, num_layers=1, grid=2, memory_channels=64, theta=9)
    memory = torch.randn(1, 4, 64)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for (read,) in (attention.project_spatial(memory, memory), attention.project_pointers(memory, memory)):
            assert read.values.shape[-1] == width
            assert (read.values is memory) == (width < channels)


@pytest.mark.parametrize("pointers_of_all", [False, True])
def test_weighing_tokens_gives_the_gradients_of_weighing_projections(monkeypatch, pointers_of_all: bool) -> None:
    """Whole layers; also where one row of keys is read by a batch of slices."""
    torch.manual_seed(0)
    attention = MemoryAttention(channels=128, feed_forward=16, num_layers=2, grid=3, memory_channels=64, theta=10_000)
    memory = torch.randn(1 if pointers_of_all else 2, 9, 64, requires_grad=True)
    places, position = torch.randn(2, 9, 128, requires_grad=True), torch.randn(1, 9, 64)

    def gradients() -> list[torch.Tensor]:
        read = attention.project_spatial(memory, position)
        loss = attention(places, [type(one)(one.keys, one.values.expand(2, -1, -1)) for one in read]).square().mean()
        return list(torch.autograd.grad(loss, [memory, places, *attention.parameters()]))

    ours = gradients()
    monkeypatch.setattr(memory_attention, "_values", lambda layer, tokens: layer.v_proj(tokens))
    for one, other in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_pooled_memory_has_the_means_of_windows() -> None:
    """Of rotated keys, values and temporal biases; row by row, 4 x 4 places become 2 x 2."""
    torch.manual_seed(0)
    sizes = {"channels": 16, "feed_forward": 32, "num_layers": 2, "grid": 4, "memory_channels": 8, "theta": 10_000}
    plain, pooled = (MemoryAttention(**sizes, pooling=pooling) for pooling in (1, 2))
    pooled.load_state_dict(plain.state_dict())
    memory, position, temporal = torch.randn(2, 16, 8), torch.randn(1, 16, 8), torch.randn(7, 8)

    def means(tokens: torch.Tensor) -> torch.Tensor:
        corners = (0, 2, 8, 10)
        return torch.stack([sum(tokens[:, c + step] for step in (0, 1, 4, 5)) / 4 for c in corners], dim=1)

    of_places, of_windows = (attention.project_spatial(memory, position) for attention in (plain, pooled))
    biases = zip(plain.temporal_bias(temporal), pooled.temporal_bias(temporal), strict=True)
    for places, windows, (every, few) in zip(of_places, of_windows, biases, strict=True):
        torch.testing.assert_close(windows.keys, means(places.keys))
        torch.testing.assert_close(windows.values, means(places.values))
        torch.testing.assert_close(torch.stack(few), means(torch.stack(every)))
