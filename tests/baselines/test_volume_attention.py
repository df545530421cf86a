"""Windows of tokens: cut and joined without loss, who sees whom, and attention against one written out."""

import math

import pytest
import torch

from sam2_3dmed.baselines.nnformer import VolumeAttention, WindowGrid


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 8, 12), (3, 6, 7), (2, 2, 2)])
@pytest.mark.parametrize("shifted", [False, True])
def test_what_is_cut_is_joined(shape: tuple, shifted: bool) -> None:
    grid = WindowGrid(shape, 4, shifted=shifted)
    tokens = torch.randn(2, *shape, 5)
    assert torch.equal(grid.join(grid.cut(tokens)), tokens)


def test_a_volume_within_a_window_is_seen_whole() -> None:
    grid = WindowGrid((4, 4, 4), 8, shifted=True)
    assert (grid.window, grid.shift, grid.allowed) == ((4, 4, 4), (0, 0, 0), None)


@pytest.mark.parametrize("shape", [(8, 8, 8), (6, 8, 5)])
@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_see_their_neighbours_only(shape: tuple, shifted: bool) -> None:
    """In every window, those that see each other lie within a window's side, and none is of the padding."""
    grid = WindowGrid(shape, 4, shifted=shifted)
    places = torch.stack(torch.meshgrid(*(torch.arange(1, n + 1) for n in shape), indexing="ij"), dim=-1)
    cut = grid.cut(places[None].float())[0]  # padding is at 0
    if grid.allowed is None:
        assert not shifted
        return
    distance = (cut[:, :, None] - cut[:, None, :]).abs().amax(dim=-1)
    assert distance[grid.allowed].max() <= 3
    real = (cut > 0).all(dim=-1)
    assert not (grid.allowed & (real[:, :, None] != real[:, None, :])).any()
    assert grid.allowed.diagonal(dim1=1, dim2=2).all()


def test_attention_written_out() -> None:
    torch.manual_seed(0)
    grid = WindowGrid((2, 2, 2), 2, shifted=False)
    attention = VolumeAttention(6, 2, grid)
    tokens = torch.randn(1, 2, 2, 2, 6)
    q, k, v = attention.project(tokens.reshape(8, 6)).chunk(3, dim=-1)
    places = [(a, b, c) for a in range(2) for b in range(2) for c in range(2)]
    outputs = []
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        scores = q[:, part] @ k[:, part].T / math.sqrt(3)
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                d, h, w = (x - y + 1 for x, y in zip(a, b, strict=True))
                scores[i, j] += attention.bias[d * 9 + h * 3 + w, head]
        outputs.append(scores.softmax(dim=1) @ v[:, part])
    expected = attention.out(torch.cat(outputs, dim=1)).reshape(1, 2, 2, 2, 6)
    torch.testing.assert_close(attention(tokens), expected)


def test_skip_attention_asks_with_what_it_is_given() -> None:
    torch.manual_seed(0)
    attention = VolumeAttention(4, 1, WindowGrid((2, 2, 2), 2, shifted=False), of_skip=True)
    skip, up = torch.randn(1, 2, 2, 2, 4), torch.randn(1, 2, 2, 2, 4)
    attention.bias.data.zero_()
    k, v = attention.project(skip.reshape(8, 4)).chunk(2, dim=-1)
    expected = attention.out((up.reshape(8, 4) @ k.T / 2).softmax(dim=1) @ v).reshape(skip.shape)
    torch.testing.assert_close(attention(skip, up), expected)
