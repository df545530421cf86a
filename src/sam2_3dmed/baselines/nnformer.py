"""nnFormer (Zhou et al., IEEE TIP 2023): a U-Net whose blocks are volume attention; written from its description.

Letters: B batch, C width of the first stage, (D, H, W) voxels, later tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.baselines.volume_attention import VolumeAttention, WindowGrid

_MOST_DROPPED = 0.2
"""The chance with which the last block of a path is left out in training; earlier ones proportionally less."""


class Block(nn.Module):
    """Attention and an MLP, each added to what comes in.

    With `of_skip`, the decoder's first block of a stage: what is attended to are the tokens of the encoder.
    """

    def __init__(self, width: int, heads: int, grid: WindowGrid, *, drop: float, of_skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = VolumeAttention(width, heads, grid, of_skip=of_skip)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = drop

    def forward(self, x: Tensor, skip: Tensor | None = None, up: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C). skip, up: of the encoder, and from the stage below, whose sum is `x`."""
        if skip is None or up is None:
            x = x + self._kept(self.attention(self.norm1(x)))
        else:
            x = x + self._kept(self.attention(self.norm1(skip), self.norm1(up)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """Stochastic depth, a case at a time."""
        if not self.training or self.drop == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, 1, device=branch.device) >= self.drop
        return branch * kept / (1 - self.drop)


class Embedding(nn.Module):
    """Voxels to tokens by four convolutions, of which the first halves and the third does the rest."""

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
            x = _last_to_channels(norm(_channels_to_last(x)))
        return _channels_to_last(x)


class Down(nn.Module):
    """Half as many tokens along each axis, of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv3d(width, 2 * width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2C)."""
        return _channels_to_last(self.convolution(_last_to_channels(self.norm(F.gelu(x)))))


class Up(nn.Module):
    """The inverse of `Down` in shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.convolution = nn.ConvTranspose3d(2 * width, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, 2C) -> (B, 2D, 2H, 2W, C)."""
        return _channels_to_last(self.convolution(_last_to_channels(self.norm(x))))


class NNFormer(nn.Module):
    """Four stages of tokens, each half as many along each axis; local attention above, global at the bottom.

    patch: (D, H, W) voxels, a multiple of 8 strides along each axis; stride: voxels of a token, even; width: C;
    heads, windows: of each stage; num_outputs: channels of the logits; depth: blocks a stage.

    Raises: ValueError if the patch is no such multiple.
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
        depth: int = 2,
    ) -> None:
        super().__init__()
        stages = range(len(heads))
        if any(size % (step * 2 ** stages[-1]) for size, step in zip(patch, stride, strict=True)):
            raise ValueError(f"a patch of {tuple(patch)} is no multiple of {2 ** stages[-1]} strides {tuple(stride)}")
        shapes = [[size // step // 2**i for size, step in zip(patch, stride, strict=True)] for i in stages]
        widths = [width * 2**i for i in stages]

        def block(stage: int, number: int, drop: float, of_skip: bool = False) -> Block:
            grid = WindowGrid(shapes[stage], windows[stage], shifted=number % 2 == 1)
            return Block(widths[stage], heads[stage], grid, drop=drop, of_skip=of_skip)

        drops = _rising(depth * len(heads))
        self.embedding = Embedding(num_channels, width, stride)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(block(i, j, drops[i * depth + j]) for j in range(depth))) for i in stages
        )
        self.downs = nn.ModuleList(Down(widths[i]) for i in stages[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(one) for one in widths)
        drops = _rising(depth * (len(heads) - 1))
        self.skips = nn.ModuleList(block(i, 0, drops[i * depth], of_skip=True) for i in stages[:-1])
        self.decoder = nn.ModuleList(
            nn.Sequential(*(block(i, j, drops[i * depth + j]) for j in range(1, depth))) for i in stages[:-1]
        )
        d, h, w = stride
        up = d, h, w
        self.ups = nn.ModuleList(Up(widths[i]) for i in stages[:-1])
        self.heads = nn.ModuleList(nn.ConvTranspose3d(widths[i], num_outputs, up, up) for i in stages[:-1])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, channels, D, H, W) -> logits (B, outputs, D, H, W); in training, also those of half the size ..."""
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
                outputs.insert(0, self.heads[i](_last_to_channels(x)))
        return outputs if self.training else outputs[0]


def _rising(count: int) -> list[float]:
    return [_MOST_DROPPED * number / max(1, count - 1) for number in range(count)]


def _channels_to_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)


def _last_to_channels(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3)
