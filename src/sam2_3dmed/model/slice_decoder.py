"""The slice decoder: SAM2's memory attention, mask decoder and memory encoder, without prompts, for K classes.

Used twice: for the segmentation (paper 3.1) and for the boundaries (paper 3.3). For K = 1 it is SAM2 to the last
digits, which a test against Meta's own outputs proves.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.model.encoder import Features
from sam2_3dmed.model.mask_decoder import MaskDecoder

NUM_MEMORIES = 7
"""Spatial memories a slice attends to: the first slice and the last 6."""
NUM_POINTERS = 15
"""Object pointers of the last slices it attends to, beside the first slice's."""
MEMORY_CHANNELS = 64


class HighResolution(NamedTuple):
    """The two finer feature levels after the decoder's own projections."""

    stride8: Tensor
    """(B, D, C/4, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C/8, 4h, 4w)."""


class Memory(NamedTuple):
    """What is kept of one slice."""

    spatial: Tensor
    """(h w, B, 64)."""
    pointer: Tensor
    """(B, C), SAM2's object pointer."""


class MemoryBank:
    """The slices a branch has seen: SAM2's choice of the first one and the latest ones, so its size is bounded.

    num_slices: how many slices will pass; the pointers' distances are coded as a share of it.
    """

    def __init__(self, num_slices: int) -> None:
        self.num_slices = num_slices
        self.count = 0
        self.first: Memory | None = None
        self._spatial: deque[Tensor] = deque(maxlen=NUM_MEMORIES - 1)
        self._pointers: deque[Tensor] = deque(maxlen=NUM_POINTERS)

    @property
    def will_be_read(self) -> bool:
        """Whether a slice comes after the next one to be added; the last slice's memory would be made for nobody."""
        return self.count + 1 < self.num_slices

    def append(self, memory: Memory) -> None:
        """Add the next slice's memory."""
        if self.first is None:
            self.first = memory
        else:
            self._spatial.append(memory.spatial)
            self._pointers.append(memory.pointer)
        self.count += 1

    def spatial(self) -> tuple[list[Tensor], list[int]]:
        """The spatial memories, and each one's row of SAM2's temporal encoding: distance - 1, and 6 for the first."""
        if self.first is None:
            return [], []
        recent = list(reversed(self._spatial))
        return [self.first.spatial, *recent], [NUM_MEMORIES - 1, *range(len(recent))]

    def pointers(self) -> tuple[list[Tensor], list[int]]:
        """The object pointers, and for each its distance in slices."""
        if self.first is None:
            return [], []
        recent = list(reversed(self._pointers))
        return [self.first.pointer, *recent], [self.count, *range(1, len(recent) + 1)]


class SliceDecoder(nn.Module):
    """Decodes a stack slice by slice, each in the light of those before it. Paper: 3.1; readings 3 and 4.

    The modules are upstream's, or have upstream's parameter names, so that weights load by name.
    num_classes: K. pointer_time: whether pointers carry their distance (SAM 2.1 does, SAM 2.0 does not).
    """

    def __init__(
        self,
        *,
        memory_attention: nn.Module,
        memory_encoder: nn.Module,
        mask_decoder: MaskDecoder,
        object_pointer_proj: nn.Module,
        position_encoding: nn.Module,
        channels: int,
        num_classes: int,
        pointer_time: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.memory_attention = memory_attention
        self.memory_encoder = memory_encoder
        self.mask_decoder = mask_decoder
        self.object_pointer_proj = object_pointer_proj
        self.position_encoding = position_encoding
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(channels, MEMORY_CHANNELS) if pointer_time else None
        )
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(NUM_MEMORIES, 1, 1, MEMORY_CHANNELS))
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, channels))
        # For one class the union map says it all; a second path would only break the identity with SAM2.
        self.class_memory = nn.Conv2d(num_classes, MEMORY_CHANNELS, 1, bias=False) if num_classes > 1 else None
        if self.class_memory is not None:
            nn.init.zeros_(self.class_memory.weight)

    def project(self, features: Features) -> HighResolution:
        """The finer levels of all slices through this branch's conv_s1 and conv_s0."""
        batch = features.z.shape[:2]
        stride8 = self.mask_decoder.conv_s1(features.stride8.flatten(0, 1)).unflatten(0, batch)
        stride4 = self.mask_decoder.conv_s0(features.stride4.flatten(0, 1)).unflatten(0, batch)
        return HighResolution(stride8, stride4)

    def attend(self, context: Tensor, bank: MemoryBank) -> Tensor:
        """One slice in the light of the bank.

        context: (B, C, h, w). Returns: the same shape; the first slice gets SAM2's "no memory" embedding instead.
        """
        if bank.count == 0:
            return context + self.no_memory_embedding.view(1, -1, 1, 1)
        queries = context.flatten(2).permute(2, 0, 1)  # (h w, B, C)
        query_position = self._sine(context, self.position_encoding).flatten(2).permute(2, 0, 1)
        memory, memory_position, num_pointer_tokens = self._read(bank, context)
        attended = self.memory_attention(queries, memory, query_position, memory_position, num_pointer_tokens)
        return attended.squeeze(0).transpose(1, 2).view_as(context)  # from (1, B, h w, C)

    def decode(self, features: Tensor, stride8: Tensor, stride4: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits and object pointer of one slice.

        features: (B, C, h, w); stride8, stride4: the slice's share of `project`.
        Returns: logits (B, K, 4h, 4w) at stride 4; pointer (B, C).
        """
        logits, class_tokens = self.mask_decoder(features, stride8, stride4)
        return logits, self.object_pointer_proj(class_tokens.mean(dim=1))

    def remember(self, z: Tensor, logits: Tensor, pointer: Tensor) -> Memory:
        """The memory of a slice: its raw features with what was found in it.

        z: (B, C, h, w), raw, as in SAM2; logits: (B, K, 4h, 4w); pointer: (B, C).
        """
        union = logits.amax(dim=1, keepdim=True)  # the largest class probability; itself for K = 1
        size = (16 * z.shape[-2], 16 * z.shape[-1])
        mask = torch.sigmoid(F.interpolate(union.float(), size, mode="bilinear", align_corners=False)) * 20 - 10
        memory, _ = self.memory_encoder(z, mask.to(z.dtype))
        if self.class_memory is not None:
            memory = memory + self.class_memory(F.avg_pool2d(torch.sigmoid(logits), 4))
        return Memory(spatial=memory.flatten(2).permute(2, 0, 1), pointer=pointer)

    def _read(self, bank: MemoryBank, like: Tensor) -> tuple[Tensor, Tensor, int]:
        """The bank as tokens (N, B, 64), their positions, and how many of the last are pointer tokens (no RoPE)."""
        spatial, rows = bank.spatial()
        in_plane = self._sine(
            like.new_empty(like.shape[0], MEMORY_CHANNELS, *like.shape[-2:]),
            self.memory_encoder.position_encoding,
        )
        in_plane = in_plane.flatten(2).permute(2, 0, 1)
        positions = [in_plane + self.memory_temporal_positional_encoding[row] for row in rows]

        pointers, distances = bank.pointers()
        tokens_each = self.channels // MEMORY_CHANNELS
        pointer_tokens = torch.stack(pointers).unflatten(-1, (tokens_each, MEMORY_CHANNELS))  # (P, B, C/64, 64)
        pointer_tokens = pointer_tokens.permute(0, 2, 1, 3).flatten(0, 1)
        pointer_positions = self._pointer_positions(distances, bank.num_slices, pointer_tokens)
        memory = torch.cat([*spatial, pointer_tokens])
        return memory, torch.cat([*positions, pointer_positions]).to(memory.dtype), len(pointer_tokens)

    def _pointer_positions(self, distances: list[int], num_slices: int, tokens: Tensor) -> Tensor:
        if self.temporal_positional_encoding_projection_layer is None:
            return torch.zeros_like(tokens)
        scale = max(min(num_slices, NUM_POINTERS + 1) - 1, 1)
        share = torch.tensor(distances, dtype=torch.float32, device=tokens.device) / scale
        code = self.temporal_positional_encoding_projection_layer(_sine_1d(share, self.channels).to(tokens.dtype))
        return code.repeat_interleave(len(tokens) // len(distances), dim=0).unsqueeze(1).expand_as(tokens)

    @staticmethod
    def _sine(like: Tensor, encoding: Any) -> Tensor:
        return encoding(like.shape, like.device, torch.float32).to(like.dtype)


def _sine_1d(position: Tensor, channels: int) -> Tensor:
    """(N,) positions -> (N, channels), the sine and cosine code of "Attention is all you need"."""
    half = channels // 2
    exponent = 2 * torch.div(torch.arange(half, device=position.device), 2, rounding_mode="floor") / half
    angles = position.unsqueeze(-1) / 10_000**exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
