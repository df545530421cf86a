"""Attention within windows of a volume's tokens, with shifts; a window as large as the volume makes it global."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowGrid(nn.Module):
    """How tokens (B, D, H, W, C) are cut into windows, after a shift along each axis, and put together again.

    Along an axis that is no longer than the window there is one window of that length, and no shift. Other axes are
    padded to whole windows. Tokens that became neighbours by the shift, and those of the padding, see no others.

    shape: (D, H, W) in tokens; window: the longest side of a window; shifted: by half a window.
    """

    def __init__(self, shape: Sequence[int], window: int, *, shifted: bool) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.window = tuple(min(window, size) for size in shape)
        self.shift = tuple(
            side // 2 if shifted and side < size else 0 for side, size in zip(self.window, shape, strict=True)
        )
        self.padded = tuple(-(-size // side) * side for size, side in zip(shape, self.window, strict=True))
        self.allowed: Tensor | None
        self.register_buffer("allowed", self._allowed(), persistent=False)

    @property
    def num_tokens(self) -> int:
        """Of a window."""
        return prod(self.window)

    def cut(self, tokens: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, windows, tokens, C)."""
        padding = [0, 0]
        for size, padded in reversed(list(zip(self.shape, self.padded, strict=True))):
            padding += [0, padded - size]
        tokens = torch.roll(F.pad(tokens, padding), [-shift for shift in self.shift], (1, 2, 3))
        return self._to_windows(tokens)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of `cut`."""
        counts = [size // side for size, side in zip(self.padded, self.window, strict=True)]
        tokens = windows.reshape(len(windows), *counts, *self.window, windows.shape[-1])
        tokens = tokens.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(windows), *self.padded, windows.shape[-1])
        d, h, w = self.shape
        return torch.roll(tokens, self.shift, (1, 2, 3))[:, :d, :h, :w]

    def _to_windows(self, tokens: Tensor) -> Tensor:
        batch, channels = len(tokens), tokens.shape[-1]
        sides = [n for size, side in zip(self.padded, self.window, strict=True) for n in (size // side, side)]
        tokens = tokens.reshape(batch, *sides, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return tokens.reshape(batch, -1, self.num_tokens, channels)

    def _allowed(self) -> Tensor | None:
        """(windows, tokens, tokens), whether one sees the other; none where all do."""
        if not any(self.shift) and self.padded == self.shape:
            return None
        regions = torch.zeros(self.padded, dtype=torch.int32)
        parts = []
        for size, padded, shift in zip(self.shape, self.padded, self.shift, strict=True):
            # After the roll: the volume but for its beginning, the padding, and behind the seam the beginning.
            ends = sorted({0, size - shift, padded - shift, padded})
            parts.append([slice(a, b) for a, b in pairwise(ends)])
        for number, place in enumerate(product(*parts)):
            regions[place] = number
        windows = self._to_windows(regions[None, ..., None])[0, ..., 0]
        return windows.unsqueeze(1) == windows.unsqueeze(2)


class VolumeAttention(nn.Module):
    """Multi-head attention of tokens within windows, with a learnt bias for each offset.

    With `of_skip`, keys and values are those of an encoder's tokens, and the queries the decoder's as they are.
    """

    def __init__(self, width: int, heads: int, grid: WindowGrid, *, of_skip: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.heads = heads
        self.project = nn.Linear(width, (2 if of_skip else 3) * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(prod(2 * side - 1 for side in grid.window), heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.offsets: Tensor
        self.register_buffer("offsets", _offsets(grid.window), persistent=False)

    def forward(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C) -> the same shape. tokens: what is looked at; queries: who looks, none: the tokens."""
        parts = list(self.project(self.grid.cut(tokens)).chunk(2 if queries is not None else 3, dim=-1))
        if queries is not None:
            parts.insert(0, self.grid.cut(queries))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts)
        n = self.grid.num_tokens
        bias = self.bias[self.offsets].view(n, n, self.heads).permute(2, 0, 1)
        if self.grid.allowed is not None:
            bias = bias.masked_fill(~self.grid.allowed.unsqueeze(1), float("-inf"))
        else:
            bias = bias.unsqueeze(0)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0).to(q.dtype))
        return self.out(self.grid.join(seen.transpose(-2, -3).flatten(-2)))


def _offsets(window: Sequence[int]) -> Tensor:
    """(tokens * tokens), the number of the offset between two tokens of a window."""
    places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :]
    number = torch.zeros_like(offsets[0])
    for along, side in zip(offsets, window, strict=True):
        number = number * (2 * side - 1) + along + side - 1
    return number.flatten()
