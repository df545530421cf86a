"""nnFormer (Zhou et al., IEEE TIP 2023): a U-Net whose blocks are volume attention; written from its description.

Letters: B batch, C width of the first stage, (D, H, W) voxels, later tokens.
"""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import window_partition, window_reverse
from torch import Tensor, nn

_MOST_DROPPED = 0.2
"""The chance with which the last block of a path is left out in training; earlier ones proportionally less."""


class WindowGrid(nn.Module):
    """Cuts tokens (B, D, H, W, C) into windows, after a shift along each axis, and joins them again.

    An axis that is not longer than the window is one window, without a shift. Other axes are padded to whole windows.
    Tokens that only the shift made neighbours, and padding, do not attend to each other.

    shape: (D, H, W) in tokens. window: its longest side. shifted: by half a window.
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

    def cut(self, tokens: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, windows, tokens, C)."""
        d, h, w = (padded - size for size, padded in zip(self.shape, self.padded, strict=True))
        tokens = torch.roll(F.pad(tokens, (0, 0, 0, w, 0, h, 0, d)), [-shift for shift in self.shift], (1, 2, 3))
        return self._to_windows(tokens)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of `cut`."""
        tokens = windows.reshape(-1, *self.window, windows.shape[-1])
        tokens = window_reverse(tokens, self.window, (len(windows), *self.padded))
        d, h, w = self.shape
        return torch.roll(tokens, self.shift, (1, 2, 3))[:, :d, :h, :w]

    def _to_windows(self, tokens: Tensor) -> Tensor:
        return window_partition(tokens, self.window).unflatten(0, (len(tokens), -1))

    def _allowed(self) -> Tensor | None:
        """(windows, tokens, tokens): whether one attends to the other; none where all do."""
        if not any(self.shift) and self.padded == self.shape:
            return None
        regions = torch.zeros(self.padded, dtype=torch.int32)
        parts = []
        for size, padded, shift in zip(self.shape, self.padded, self.shift, strict=True):
            # After the roll: the volume without its beginning, the padding, and its beginning.
            ends = sorted({0, size - shift, padded - shift, padded})
            parts.append([slice(a, b) for a, b in pairwise(ends)])
        for number, place in enumerate(product(*parts)):
            regions[place] = number
        windows = self._to_windows(regions[None, ..., None])[0, ..., 0]
        return windows.unsqueeze(1) == windows.unsqueeze(2)


class VolumeAttention(nn.Module):
    """Multi-head attention of tokens within windows, with a learnt bias for each offset.

    With `of_skip`, keys and values come from the encoder's tokens, and the decoder's tokens are the queries.
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
        """(B, D, H, W, C) -> the same shape. tokens: for keys and values, and without `queries` for these, too."""
        parts = list(self.project(self.grid.cut(tokens)).chunk(2 if queries is not None else 3, dim=-1))
        if queries is not None:
            parts.insert(0, self.grid.cut(queries))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts)
        n = prod(self.grid.window)
        bias = self.bias[self.offsets].view(n, n, self.heads).permute(2, 0, 1)
        if self.grid.allowed is not None:
            bias = bias.masked_fill(~self.grid.allowed.unsqueeze(1), float("-inf"))
        else:
            bias = bias.unsqueeze(0)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0).to(q.dtype))
        return self.out(self.grid.join(seen.transpose(-2, -3).flatten(-2)))


def _offsets(window: Sequence[int]) -> Tensor:
    """(tokens * tokens): the number of the offset between two tokens of a window."""
    positions = torch.stack(torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")).flatten(1)
    offsets = positions[:, :, None] - positions[:, None, :]
    number = torch.zeros_like(offsets[0])
    for along, side in zip(offsets, window, strict=True):
        number = number * (2 * side - 1) + along + side - 1
    return number.flatten()


class Block(nn.Module):
    """Attention and an MLP with residual connections.

    With `of_skip`, the first block of a decoder stage, which attends to the encoder's tokens.
    """

    def __init__(self, width: int, heads: int, grid: WindowGrid, *, drop: float, of_skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = VolumeAttention(width, heads, grid, of_skip=of_skip)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = drop

    def forward(self, x: Tensor, skip: Tensor | None = None, up: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C). skip, up: from the encoder and from the stage below; `x` is their sum."""
        if skip is None or up is None:
            x = x + self._kept(self.attention(self.norm1(x)))
        else:
            x = x + self._kept(self.attention(self.norm1(skip), self.norm1(up)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """Stochastic depth, for each case of a batch."""
        if not self.training or self.drop == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, 1, device=branch.device) >= self.drop
        return branch * kept / (1 - self.drop)


class Embedding(nn.Module):
    """Voxels to tokens by four convolutions; the first has stride 2, the third the rest of the token's stride."""

    def __init__(self, num_channels: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        d, h, w = stride
        half, rest = width // 2, (d // 2, h // 2, w // 2)
        self.convolutions = nn.ModuleList(
            [
                nn.Conv3d(num_channels, half, 3, 2, 1),
                nn.Conv3d(half, half, 3, 1, 1),
                nn.Conv3d(half, width, 3, rest, 1),
                nn.Conv3d(width, width, 3, 1, 1),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in (half, half, width, width))

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, D', H', W', C)."""
        x = image
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(x)
            if number < len(self.convolutions) - 1:
                x = F.gelu(x)
            x = norm(x.movedim(1, -1)).movedim(-1, 1)
        return x.movedim(1, -1)


class Down(nn.Module):
    """Half as many tokens along each axis, of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv3d(width, 2 * width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2C)."""
        x = self.norm(F.gelu(x)).movedim(-1, 1)
        if x.device.type != "cpu":
            return self.convolution(x).movedim(1, -1)
        # In bf16 on a CPU, torch 2.13 gives NaN for some small volumes: the result depends on memory beyond the input.
        with torch.autocast("cpu", enabled=False):
            return self.convolution(x.float()).movedim(1, -1)


class Up(nn.Module):
    """The inverse of `Down` in shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.convolution = nn.ConvTranspose3d(2 * width, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, 2C) -> (B, 2D, 2H, 2W, C)."""
        return self.convolution(self.norm(x).movedim(-1, 1)).movedim(1, -1)


class NNFormer(nn.Module):
    """Four stages of two blocks, each with half as many tokens along each axis; attention is global at the bottom.

    Args:
        patch: (D, H, W) voxels, a multiple of 8 strides along each axis, else a ValueError.
        stride: voxels of a token along (D, H, W), even.
        width: C of the first stage.
        heads, windows: of each stage.
    """

    def __init__(
        self,
        num_channels: int,
        num_outputs: int,
        patch: Sequence[int],
        stride: Sequence[int],
        width: int,
        heads: Sequence[int],
        windows: Sequence[int],
    ) -> None:
        super().__init__()
        stages = range(len(heads))
        if any(size % (step * 2 ** stages[-1]) for size, step in zip(patch, stride, strict=True)):
            raise ValueError(f"a patch of {tuple(patch)} is no multiple of {2 ** stages[-1]} strides {tuple(stride)}")
        shapes = [[size // step // 2**i for size, step in zip(patch, stride, strict=True)] for i in stages]
        widths = [width * 2**i for i in stages]

        def block(stage: int, number: int, depth: int, of_skip: bool = False) -> Block:
            """The first (0) or second (1) block of a stage, in a path of `depth` stages."""
            grid = WindowGrid(shapes[stage], windows[stage], shifted=number == 1)
            drop = _MOST_DROPPED * (2 * stage + number) / (2 * depth - 1)
            return Block(widths[stage], heads[stage], grid, drop=drop, of_skip=of_skip)

        deep = len(heads)
        self.embedding = Embedding(num_channels, width, stride)
        self.encoder = nn.ModuleList(nn.Sequential(block(i, 0, deep), block(i, 1, deep)) for i in stages)
        self.downs = nn.ModuleList(Down(widths[i]) for i in stages[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(one) for one in widths)
        self.skips = nn.ModuleList(block(i, 0, deep - 1, of_skip=True) for i in stages[:-1])
        self.decoder = nn.ModuleList(nn.Sequential(block(i, 1, deep - 1)) for i in stages[:-1])
        d, h, w = stride
        self.ups = nn.ModuleList(Up(widths[i]) for i in stages[:-1])
        self.heads = nn.ModuleList(
            nn.ConvTranspose3d(widths[i], num_outputs, (d, h, w), (d, h, w)) for i in stages[:-1]
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, channels, D, H, W) -> logits (B, outputs, D, H, W); in training also of half the size and so on."""
        x = self.embedding(image)
        skips = []
        for i, stage in enumerate(self.encoder):
            x = stage(self.downs[i - 1](x) if i > 0 else x)
            skips.append(self.norms[i](x))
        x = skips[-1]
        outputs: list[Tensor] = []
        for i in reversed(range(len(self.decoder))):
            up = self.ups[i](x)
            x = self.decoder[i](self.skips[i](up + skips[i], skips[i], up))
            if self.training or i == 0:
                outputs.insert(0, self.heads[i](x.movedim(-1, 1)))
        return outputs if self.training else outputs[0]
