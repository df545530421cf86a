"""SAM2's memory attention: the tokens of a slice attend to each other, then to the memories (paper 3.1).

Upstream's parameters under upstream's names. A memory is projected to keys and values once, when it is made, instead of
by every slice that reads it. Projection and rotation are linear, so its temporal code, which changes as it ages,
becomes a bias of the keys.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_QUERIES_AT_ONCE = 256
"""Without gradients. The scores of seven memories of 32 x 32 places then take 7 MB instead of 29, and less time."""


class KeyValues(NamedTuple):
    """Memory tokens as one layer reads them."""

    keys: Tensor  # (B, N, C) or (1, N, C)
    values: Tensor  # (B, N, C); or (B, N, 64), the tokens, which the layer projects after weighing: see `_values`


class Projections(nn.Module):
    """The linear maps of an attention with one head."""

    def __init__(self, channels: int, memory_channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(memory_channels, channels)
        self.v_proj = nn.Linear(memory_channels, channels)
        self.o_proj = nn.Linear(channels, channels)


class _Layer(nn.Module):
    def __init__(self, channels: int, feed_forward: int, memory_channels: int) -> None:
        super().__init__()
        self.self_attn = Projections(channels, channels)
        self.cross_attn_image = Projections(channels, memory_channels)
        self.linear1 = nn.Linear(channels, feed_forward)
        self.linear2 = nn.Linear(feed_forward, channels)
        self.layer_norm1 = nn.LayerNorm(channels)
        self.layer_norm2 = nn.LayerNorm(channels)
        self.layer_norm3 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, memory: KeyValues, rope: Tensor, log_counts: Tensor | None) -> Tensor:
        own, normed = self.self_attn, self.layer_norm1(tokens)
        query, key = apply_rope(own.q_proj(normed), rope), apply_rope(own.k_proj(normed), rope)
        tokens = tokens + own.o_proj(attend(query, key, own.v_proj(normed)))
        cross = self.cross_attn_image
        query = apply_rope(cross.q_proj(self.layer_norm2(tokens)), rope)
        tokens = tokens + cross.o_proj(_read(query, memory, cross.v_proj, log_counts))
        return tokens + self.linear2(torch.relu(self.linear1(self.layer_norm3(tokens))))


class MemoryAttention(nn.Module):
    """Layers of self-attention within a slice and cross-attention to memory tokens.

    grid is h = w, and theta the base of the rotary position embedding (RoPE). `pooling` P is the width of the windows
    of a memory whose tokens become one: N is h w / P^2 for each.
    """

    rope_cos_sin: Tensor

    def __init__(
        self,
        *,
        channels: int,
        feed_forward: int,
        num_layers: int,
        grid: int,
        memory_channels: int,
        theta: float,
        pooling: int = 1,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pooling = pooling
        self.layers = nn.ModuleList(_Layer(channels, feed_forward, memory_channels) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(channels)
        self.register_buffer("rope_cos_sin", make_rope(grid, channels, theta), persistent=False)

    def forward(self, tokens: Tensor, memory: Sequence[KeyValues], log_counts: Tensor | None = None) -> Tensor:
        """(B, h w, C) -> (B, h w, C), from a slice's tokens with their positions and its memory for each layer.

        log_counts: see the method of this name. None: every token stands for as many places.
        """
        for layer, key_values in zip(self.layers, memory, strict=True):
            tokens = layer(tokens, key_values, self.rope_cos_sin, log_counts)
        normed: Tensor = self.layer_norm(tokens)
        return normed

    def project_spatial(self, memory: Tensor, position: Tensor) -> tuple[KeyValues, ...]:
        """The keys and values of a spatial memory for each layer, without its temporal bias; both (B, h w, 64)."""
        positioned, pooled = memory + position, self._pool(memory)
        return tuple(
            KeyValues(self._pool(apply_rope(a.k_proj(positioned), self.rope_cos_sin)), _values(a, pooled))
            for a in self._cross_attentions()
        )

    def project_pointers(self, tokens: Tensor, position: Tensor) -> tuple[KeyValues, ...]:
        """The keys and values of object pointers for each layer, which are not rotated; both (B, N, 64)."""
        positioned = tokens + position
        return tuple(KeyValues(a.k_proj(positioned), _values(a, tokens)) for a in self._cross_attentions())

    def temporal_bias(self, temporal: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """The bias that temporal codes (T, 64) add to the keys of each layer: T tensors (N, C) a layer."""
        layers = []
        for attention in self._cross_attentions():
            keys = F.linear(temporal, attention.k_proj.weight)  # the keys have k_proj's bias already
            rows = keys.unsqueeze(1).expand(-1, len(self.rope_cos_sin), -1)
            layers.append(self._pool(apply_rope(rows, self.rope_cos_sin)).unbind())
        return tuple(layers)

    def log_counts(self, num_spatial: int, pointers: Tensor) -> Tensor | None:
        """(1, N): the logarithm of the number of places that each token stands for, spatial ones first.

        It is added to the scores, so that a pooled token weighs as much beside a pointer as its places would.
        """
        if self.pooling == 1:
            return None
        return F.pad(pointers.new_zeros(1, pointers.shape[1]), (num_spatial, 0), value=2 * math.log(self.pooling))

    def _pool(self, tokens: Tensor) -> Tensor:
        """(B, h w, C) -> (B, N, C): the mean of each window. Keys are rotated before, as in EfficientTAM."""
        if self.pooling == 1:
            return tokens
        planes = tokens.transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        return F.avg_pool2d(planes, self.pooling).flatten(2).transpose(1, 2)

    def _cross_attentions(self) -> list[Projections]:
        return [layer.cross_attn_image for layer in self.layers]  # type: ignore[misc]


def make_rope(grid: int, channels: int, theta: float) -> Tensor:
    """(h w, C / 2, 2): cosine and sine of the angle of each channel pair. Half of them turn with x, half with y."""
    frequencies = theta ** -(torch.arange(0, channels // 2, 2, dtype=torch.float32, device="cpu") / (channels // 2))
    steps = torch.arange(grid, dtype=torch.float32, device="cpu")
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    angles = torch.cat([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rope(tokens: Tensor, rope_cos_sin: Tensor) -> Tensor:
    """Rotate each pair of channels of (B, h w, C) by the angle of its position. In float32, as in SAM2."""
    pairs = tokens.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():  # neither has complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), rope_cos_sin.unbind(-1)
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope_cos_sin))
    return rotated.flatten(-2).type_as(tokens)


def _values(attention: Projections, tokens: Tensor) -> Tensor:
    """The values of memory tokens (B, N, 64): their projections (B, N, C), or on a CPU the tokens themselves.

    Attention weights add up to 1, so the projection of the mean is the mean of the projections, and weighing 64
    channels costs a quarter of weighing 256. Torch's fused attention refuses unequal widths on a CPU. Attention that is
    not fused keeps the weights for the gradients, which activation checkpointing avoids, and in bf16 it would round the
    product of queries and keys.
    """
    narrower = tokens.shape[-1] < attention.v_proj.out_features
    if narrower and tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return tokens
    projected: Tensor = attention.v_proj(tokens)
    return projected


def _read(
    query: Tensor, memory: KeyValues, projection: Callable[[Tensor], Tensor], log_counts: Tensor | None
) -> Tensor:
    """Cross-attention: (B, h w, C); (B, 1, C) for a memory of a single token."""
    are_projected = memory.values.shape[-1] == memory.keys.shape[-1]
    if memory.values.shape[1] == 1:  # there is no choice; a softmax would only train queries and keys on noise
        return memory.values if are_projected else projection(memory.values)
    if are_projected:
        return attend(query, memory.keys, memory.values, log_counts)
    blocks = [query] if torch.is_grad_enabled() else query.split(_QUERIES_AT_ONCE, dim=1)
    return projection(torch.cat([_weigh(block, memory, log_counts) for block in blocks], dim=1))


def _weigh(query: Tensor, memory: KeyValues, log_counts: Tensor | None) -> Tensor:
    """(B, N, C) -> (B, N, 64): the mean of the memory's tokens, weighed by each query."""
    scores = (query * query.shape[-1] ** -0.5) @ memory.keys.transpose(1, 2)
    if log_counts is not None:
        scores = scores + log_counts
    return torch.softmax(scores, dim=-1) @ memory.values


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention with one head, of (B, N, C). The axis of heads is what fused attention and ONNX need.

    bias: (1, N), added to the scores.
    """
    query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    return F.scaled_dot_product_attention(query, key, value, bias).squeeze(1)
