"""SAM2's Hiera and feature pyramid: upstream's parameters under upstream's names, computed with less.

Upstream's forward projects the padding around attention windows (14 x 14 windows on a 32 x 32 grid are 72% more
tokens), computes a product of queries and keys that nothing reads and position codes that SAM2 never uses, and resizes
the position embedding bicubically for every slice. This forward leaves all of that out. The numbers are equal to the
last digits, and so are the gradients.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.encoders.precision import in_float32
from sam2_3dmed.encoders.registry import Encoder

NUM_LEVELS = 3
TOKENS_AT_ONCE = 2048
"""In a block with windows on a CPU."""


@dataclass(frozen=True)
class HieraSize:
    """An entry for each of four stages, finest first; the defaults are SAM2's Hiera-Tiny."""

    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    blocks: tuple[int, int, int, int] = (1, 2, 7, 2)
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)  # attend over the whole plane; counted through all stages
    background: int = 7  # side of the position embedding that is resized to the plane


HIERA_SIZES: dict[str, HieraSize] = {
    "nano": HieraSize(widths=(24, 48, 96, 192), blocks=(1, 1, 2, 1), windows=(8, 4, 8, 4), global_blocks=(3,)),
    "tiny": HieraSize(),
    "small": HieraSize(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": HieraSize(
        widths=(112, 224, 448, 896),
        blocks=(2, 3, 16, 3),
        heads=(2, 4, 8, 16),
        global_blocks=(12, 16, 20),
        background=14,
    ),
    "large": HieraSize(
        widths=(144, 288, 576, 1152),
        blocks=(2, 6, 36, 4),
        heads=(2, 4, 8, 16),
        windows=(8, 4, 16, 8),
        global_blocks=(23, 33, 43),
    ),
}
"""SAM2's four sizes, and `nano`, the same architecture cut down for CPUs."""


def hiera_config(size: HieraSize, image_size: int, channels: int) -> Any:
    """The `Sam2VisionConfig` of a size, for H = W = `image_size` pixels and a pyramid of C = `channels`."""
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig

    grid = image_size // 16
    backbone = Sam2HieraDetConfig(
        hidden_size=size.widths[0],
        image_size=[image_size, image_size],
        num_attention_heads=size.heads[0],
        embed_dim_per_stage=list(size.widths),
        blocks_per_stage=list(size.blocks),
        num_attention_heads_per_stage=list(size.heads),
        window_size_per_stage=list(size.windows),
        global_attention_blocks=list(size.global_blocks),
        window_positional_embedding_background_size=[size.background] * 2,
    )
    return Sam2VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=channels,
        backbone_channel_list=list(reversed(size.widths)),
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
    )


class HieraEncoder(Encoder):
    """Hiera and its pyramid, with the parts of `upstream`, a `Sam2VisionModel`."""

    has_sam2_weights = True
    lora_targets = r".*\.attn\.(qkv|proj)"
    resize: Tensor

    def __init__(self, upstream: Any, image_size: int) -> None:
        super().__init__()
        self.backbone = upstream.backbone
        self.neck = upstream.neck
        self.channels = self.neck.convs[0].out_channels
        # Bicubic resizing is linear: a matrix for each axis, which is cheaper than resizing.
        identity = torch.eye(self.backbone.pos_embed.shape[-1], device="cpu")[None, None]
        rows = F.interpolate(identity, (image_size // 4, identity.shape[-1]), mode="bicubic")[0, 0]
        self.register_buffer("resize", rows, persistent=False)

    @classmethod
    def build(cls, size: str, image_size: int, channels: int) -> Self:
        from transformers import Sam2VisionModel

        return cls(Sam2VisionModel(hiera_config(HIERA_SIZES[size], image_size, channels)), image_size)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [level.permute(0, 3, 1, 2) for level in in_float32(self._pyramid, *self._stages(pixels))]

    def pre_fpn_features(self, pixels: Tensor) -> list[Tensor]:
        stages = self._stages(pixels)
        levels = enumerate(in_float32(self._pyramid, *stages))
        return [(level if self.lateral(i) is None else stages[i]).permute(0, 3, 1, 2) for i, level in levels]

    def lateral(self, level: int) -> nn.Conv2d | None:
        conv: nn.Conv2d = self.neck.convs[len(self.neck.convs) - 1 - level]
        alone = level not in self.neck.fpn_top_down_levels  # no coarser level is added to it
        return conv if alone and conv.in_channels < conv.out_channels else None

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """The output of each stage of the trunk, (B, ., ., width), finest first."""
        hidden = in_float32(self._patches, pixels)
        stages = []
        for number, block in enumerate(self.backbone.blocks):
            hidden = _in_stripes(block, hidden)
            if number in self.backbone.stage_ends:
                stages.append(hidden)
        return stages

    def layers(self) -> list[list[nn.Parameter]]:
        codes = [self.backbone.pos_embed, self.backbone.pos_embed_window, *self.backbone.patch_embed.parameters()]
        return [codes, *(list(block.parameters()) for block in self.backbone.blocks), list(self.neck.parameters())]

    def last_stage(self) -> list[nn.Module]:
        # Z is the sum of the pyramid's maps of the coarsest stage and of the stage before.
        return [*self.backbone.blocks[self.backbone.stage_ends[-2] + 1 :], *self.neck.convs[:2]]

    def _patches(self, pixels: Tensor) -> Tensor:
        """(B, H/4, W/4, width), with an embedding of the plane, and one that repeats in every attention window."""
        patches: Tensor = self.backbone.patch_embed(pixels)
        coarse, window = self.backbone.pos_embed, self.backbone.pos_embed_window
        plane = self.resize @ coarse @ self.resize.T
        repeats = plane.shape[-1] // window.shape[-1]
        return patches + (plane + window.tile(1, 1, repeats, repeats)).permute(0, 2, 3, 1)

    def _pyramid(self, *stages: Tensor) -> list[Tensor]:
        """The levels at stride 4, 8 and 16, (B, ., ., C)."""
        levels: list[Tensor] = []  # coarsest first
        for number, conv in zip(reversed(range(len(stages))), self.neck.convs, strict=True):
            level = F.linear(stages[number], conv.weight.flatten(1), conv.bias)  # a 1 x 1 convolution
            if number in self.neck.fpn_top_down_levels and levels:
                pairs = level.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
                level = (pairs + levels[-1].unsqueeze(3).unsqueeze(2)).view(level.shape)
            levels.append(level)
        return levels[: -NUM_LEVELS - 1 : -1]


def _in_stripes(block: Any, hidden: Tensor) -> Tensor:
    """`_block`. On a CPU, a block with windows takes a few rows of them at a time, which stay in the cache."""
    window, (height, width) = block.window_size, (int(side) for side in hidden.shape[1:3])
    rows = window * max(1, TOKENS_AT_ONCE // (window * width)) if window else height
    if hidden.device.type != "cpu" or rows >= height or torch.is_grad_enabled() or torch.onnx.is_in_onnx_export():
        return _block(block, hidden)
    return torch.cat([_block(block, stripe) for stripe in hidden.split(rows, dim=1)], dim=1)


def _block(block: Any, hidden: Tensor) -> Tensor:
    """One block of Hiera: attention within windows or the whole plane, then an MLP. hidden: (B, H, W, C)."""
    normed = block.layer_norm1(hidden)
    residual = hidden if block.dim == block.dim_out else _pool(block.proj(normed), block.query_stride)
    hidden = in_float32(torch.add, residual, block.attn.proj(_attend(block, normed, residual.shape[1:3])))
    return hidden + block.mlp(block.layer_norm2(hidden))


def _attend(block: Any, normed: Tensor, size: torch.Size) -> Tensor:
    """Attention of a block; normed: (B, H, W, .). Returns: (B, *size, C)."""
    height, width = (int(side) for side in normed.shape[1:3])  # numbers, also while ONNX traces
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
    """Tokens beyond the plane: upstream projects zeros there, which gives the bias."""
    batch, old_height, old_width, _ = projected.shape
    bias = bias.to(projected.dtype)
    if width > old_width:
        projected = torch.cat([projected, bias.expand(batch, old_height, width - old_width, -1)], dim=2)
    if height > old_height:
        projected = torch.cat([projected, bias.expand(batch, height - old_height, width, -1)], dim=1)
    return projected


def _windows(plane: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B H/window W/window, window, window, C)."""
    tiles = plane.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return tiles.transpose(2, 3).flatten(0, 2)


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(N, side, side, C) -> (N, heads, side side, C / heads)."""
    return tokens.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _pool(plane: Tensor, stride: Any) -> Tensor:
    """Max pooling of (B, H, W, C)."""
    # Contiguous, or torch falls back to a kernel that takes many times as long.
    return F.max_pool2d(plane.contiguous().permute(0, 3, 1, 2), stride, stride).permute(0, 2, 3, 1)
