"""SAM2's Hiera and feature pyramid: upstream's parameters under upstream's names, computed with less.

What upstream's forward does and this one does not: project the padding around windows (14 x 14 windows on a 32 x 32
grid are 72% more tokens than there are), a product of queries and keys that nobody reads, position codes that SAM2
never uses, a bicubic resize for every slice. The numbers are the same to the last digits, and so are the gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.encoders.precision import in_float32

NUM_LEVELS = 3


class VisionEncoder(nn.Module):
    """Pixels to feature levels.

    upstream: `Sam2VisionModel`, whose parts are taken over; image_size: H = W.
    """

    def __init__(self, upstream: Any, image_size: int) -> None:
        super().__init__()
        self.backbone = upstream.backbone
        self.neck = upstream.neck
        # Bicubic resizing is linear: a matrix for each axis, which is cheaper than resizing.
        identity = torch.eye(self.backbone.pos_embed.shape[-1], device="cpu")[None, None]
        rows = F.interpolate(identity, (image_size // 4, identity.shape[-1]), mode="bicubic")[0, 0]
        self.register_buffer("resize", rows, persistent=False)

    resize: Tensor

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, C, ., .) at stride 4, 8 and 16, channels last in memory."""
        return [level.permute(0, 3, 1, 2) for level in in_float32(self._pyramid, *self._stages(pixels))]

    def pre_fpn_features(self, pixels: Tensor) -> list[Tensor]:
        """The levels of `forward`, but ahead of their `lateral` where they have one."""
        stages = self._stages(pixels)
        levels = enumerate(in_float32(self._pyramid, *stages))
        return [(level if self.lateral(i) is None else stages[i]).permute(0, 3, 1, 2) for i, level in levels]

    @property
    def channels(self) -> int:
        """C, of every level."""
        channels: int = self.neck.convs[0].out_channels
        return channels

    def lateral(self, stage: int) -> nn.Conv2d | None:
        """The convolution, 1 x 1, that alone makes a stage of the trunk into its level, if that adds channels."""
        conv: nn.Conv2d = self.neck.convs[len(self.neck.convs) - 1 - stage]
        alone = stage not in self.neck.fpn_top_down_levels
        return conv if alone and conv.in_channels < conv.out_channels else None

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """What each stage of the trunk ends with, (B, ., ., its width), finest first."""
        hidden = in_float32(self._patches, pixels)
        stages = []
        for number, block in enumerate(self.backbone.blocks):
            hidden = _block(block, hidden)
            if number in self.backbone.stage_ends:
                stages.append(hidden)
        return stages

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of every layer, from the pixels up: patches and position codes, each block, the pyramid."""
        codes = [self.backbone.pos_embed, self.backbone.pos_embed_window, *self.backbone.patch_embed.parameters()]
        return [codes, *(list(block.parameters()) for block in self.backbone.blocks), list(self.neck.parameters())]

    def last_stage(self) -> list[nn.Module]:
        """The blocks of the coarsest stage, and the pyramid's maps of it and of the stage before, whose sum Z is."""
        return [*self.backbone.blocks[self.backbone.stage_ends[-2] + 1 :], *self.neck.convs[:2]]

    def _patches(self, pixels: Tensor) -> Tensor:
        """(B, H/4, W/4, its width), with their places."""
        patches: Tensor = self.backbone.patch_embed(pixels)
        return patches + self._position()

    def _position(self) -> Tensor:
        """(1, H/4, W/4, C): one code for the whole plane, and one that repeats in every window."""
        coarse, window = self.backbone.pos_embed, self.backbone.pos_embed_window
        plane = self.resize @ coarse @ self.resize.T
        repeats = plane.shape[-1] // window.shape[-1]
        return (plane + window.tile(1, 1, repeats, repeats)).permute(0, 2, 3, 1)

    def _pyramid(self, *stages: Tensor) -> list[Tensor]:
        """The levels at stride 4, 8 and 16, (B, ., ., C)."""
        last = len(stages) - 1
        levels: list[Tensor] = []  # coarsest first
        for stage in range(last, -1, -1):
            conv = self.neck.convs[last - stage]
            level = F.linear(stages[stage], conv.weight.flatten(1), conv.bias)  # a 1 x 1 convolution
            if stage in self.neck.fpn_top_down_levels and levels:
                batch, height, width, channels = level.shape
                above = levels[-1].view(batch, height // 2, 1, width // 2, 1, channels)
                level = (level.view(batch, height // 2, 2, width // 2, 2, channels) + above).view(level.shape)
            levels.append(level)
        return levels[: -NUM_LEVELS - 1 : -1]


def _block(block: Any, hidden: Tensor) -> Tensor:
    """One block of Hiera: attention within windows or the whole plane, then an MLP. hidden: (B, H, W, C)."""
    normed = block.layer_norm1(hidden)
    residual = hidden if block.dim == block.dim_out else _pool(block.proj(normed), block.query_stride)
    hidden = in_float32(torch.add, residual, block.attn.proj(_attend(block, normed, residual.shape[1:3])))
    return hidden + block.mlp(block.layer_norm2(hidden))


def _attend(block: Any, normed: Tensor, size: torch.Size) -> Tensor:
    """What each place of the output grid, `size`, gathers: (B, *size, C)."""
    height, width = (int(side) for side in normed.shape[1:3])  # numbers, also while it is traced for ONNX
    window = block.window_size or max(height, width)
    rows, columns = -(-height // window), -(-width // window)
    padded = (rows * window, columns * window)
    if padded == (height, width):
        parts = block.attn.qkv(_windows(normed, window))
    else:
        parts = _windows(_pad(block.attn.qkv(normed), block.attn.qkv.bias, *padded), window)
    query, key, value = parts.unflatten(-1, (3, -1)).unbind(-2)  # (B rows columns, window, window, C) each
    if block.query_stride is not None:
        query = _pool(query, block.query_stride)
    side = query.shape[1]
    query, key, value = (_heads(x, block.attn.num_attention_heads) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value)
    attended = attended.transpose(1, 2).reshape(-1, rows, columns, side, side, block.dim_out)
    plane = attended.transpose(2, 3).reshape(-1, rows * side, columns * side, block.dim_out)
    return plane[:, : size[0], : size[1]]


def _pad(projected: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """Places beyond the plane: upstream projects zeros there, which gives the bias."""
    batch, old_height, old_width, channels = projected.shape
    bias = bias.to(projected.dtype)
    if width > old_width:
        projected = torch.cat([projected, bias.expand(batch, old_height, width - old_width, channels)], dim=2)
    if height > old_height:
        projected = torch.cat([projected, bias.expand(batch, height - old_height, width, channels)], dim=1)
    return projected


def _windows(plane: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B H/window W/window, window, window, C)."""
    batch, height, width, channels = plane.shape
    tiles = plane.view(batch, height // window, window, width // window, window, channels)
    return tiles.transpose(2, 3).reshape(-1, window, window, channels)


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(N, side, side, C) -> (N, heads, side side, C / heads)."""
    return tokens.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _pool(plane: Tensor, stride: Any) -> Tensor:
    """The largest of each stride x stride places, (B, H, W, C)."""
    # Contiguous, or torch falls back to a kernel that takes many times as long.
    return F.max_pool2d(plane.contiguous().permute(0, 3, 1, 2), stride, stride).permute(0, 2, 3, 1)
