"""SAM2's memory attention: a slice's places attend to each other, then to the memories (paper 3.1).

Upstream's parameters under upstream's names. A memory is projected to keys and values once, when it is made, not by
every slice that reads it; what changes as it ages, its temporal code, is a row that is added to the keys: projecting
and rotating are both linear.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """What one layer reads of memory tokens."""

    keys: Tensor
    """(B, N, C) or (1, N, C)."""
    values: Tensor
    """(B, N, C); or (B, N, 64), the tokens themselves, which the layer projects after weighing: see `_values`."""


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

    def forward(self, places: Tensor, memory: KeyValues, turns: Tensor) -> Tensor:
        attention, normed = self.self_attn, self.layer_norm1(places)
        query, key = rotate(attention.q_proj(normed), turns), rotate(attention.k_proj(normed), turns)
        places = places + attention.o_proj(_attend(query, key, attention.v_proj(normed)))
        attention = self.cross_attn_image
        query = rotate(attention.q_proj(self.layer_norm2(places)), turns)
        places = places + attention.o_proj(_read(query, memory, attention.v_proj))
        return places + self.linear2(torch.relu(self.linear1(self.layer_norm3(places))))


class MemoryAttention(nn.Module):
    """One slice in the light of memory tokens.

    channels: C; grid: h = w; memory_channels: of a memory token; theta: the base of the rotary code.
    """

    turns: Tensor

    def __init__(
        self, *, channels: int, feed_forward: int, num_layers: int, grid: int, memory_channels: int, theta: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(channels, feed_forward, memory_channels) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(channels)
        self.register_buffer("turns", rotary_code(grid, channels, theta), persistent=False)

    def forward(self, places: Tensor, memory: Sequence[KeyValues]) -> Tensor:
        """places: (B, h w, C) with their position; memory: for each layer. Returns: (B, h w, C)."""
        for layer, tokens in zip(self.layers, memory, strict=True):
            places = layer(places, tokens, self.turns)
        normed: Tensor = self.layer_norm(places)
        return normed

    def of_places(self, memory: Tensor, position: Tensor) -> tuple[KeyValues, ...]:
        """What each layer reads of a spatial memory without its temporal code; (B, h w, 64) both."""
        attentions = self._readers()
        placed = memory + position
        return tuple(KeyValues(rotate(a.k_proj(placed), self.turns), _values(a, memory)) for a in attentions)

    def of_pointers(self, tokens: Tensor, position: Tensor) -> tuple[KeyValues, ...]:
        """What each layer reads of object pointers, which have no place; (B, N, 64) both."""
        attentions = self._readers()
        placed = tokens + position
        return tuple(KeyValues(a.k_proj(placed), _values(a, tokens)) for a in attentions)

    def ages(self, temporal: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """What a temporal code, (T, 64), adds to the keys of each layer: T times (h w, C)."""
        rows = []
        for attention in self._readers():
            keys = F.linear(temporal, attention.k_proj.weight)  # the bias is in the keys already
            rows.append(rotate(keys.unsqueeze(1).expand(-1, len(self.turns), -1), self.turns).unbind())
        return tuple(rows)

    def _readers(self) -> list[Projections]:
        return [layer.cross_attn_image for layer in self.layers]  # type: ignore[misc]


def rotary_code(grid: int, channels: int, theta: float) -> Tensor:
    """(h w, C / 2, 2): cosine and sine of each pair's angle; the first pairs turn with x, the other half with y."""
    frequencies = theta ** -(torch.arange(0, channels // 2, 2, dtype=torch.float32, device="cpu") / (channels // 2))
    steps = torch.arange(grid, dtype=torch.float32, device="cpu")
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    angles = torch.cat([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(tokens: Tensor, turns: Tensor) -> Tensor:
    """Each pair of channels turned by its place's angle; (B, h w, C). In float32, as in SAM2."""
    pairs = tokens.float().unflatten(-1, (-1, 2))
    if (
        torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    ):  # neither the compiler nor ONNX knows complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).type_as(tokens)


def _values(attention: Projections, tokens: Tensor) -> Tensor:
    """What is weighed of memory tokens, (B, N, 64): their projections, (B, N, C), or on a CPU themselves.

    Weights add up to 1, so that the projection of the mean is the mean of the projections, and weighing 64 channels
    costs a quarter of weighing 256. Torch's fused attention does not do that on a CPU. What is not fused keeps the
    weights for the gradients, which checkpointing avoids, and in bf16 would round the product of queries and keys.
    """
    narrower = tokens.shape[-1] < attention.v_proj.out_features
    if narrower and tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return tokens
    projected: Tensor = attention.v_proj(tokens)
    return projected


def _read(query: Tensor, memory: KeyValues, projection: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, h w, C); of a single token (B, 1, C)."""
    are_projected = memory.values.shape[-1] == memory.keys.shape[-1]
    if memory.values.shape[1] == 1:  # nothing to choose from; as a softmax, it would teach queries and keys noise
        return memory.values if are_projected else projection(memory.values)
    if are_projected:
        return _attend(query, memory.keys, memory.values)
    scores = (query * query.shape[-1] ** -0.5) @ memory.keys.transpose(1, 2)
    return projection(torch.softmax(scores, dim=-1) @ memory.values)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head."""
    return F.scaled_dot_product_attention(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)).squeeze(1)
