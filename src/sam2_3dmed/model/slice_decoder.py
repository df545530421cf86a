"""The slice decoder: SAM2's memory attention, mask decoder and memory encoder, without prompts, for K classes.

Used twice: for the segmentation (paper 3.1) and for the boundaries (paper 3.3). For K = 1 it equals SAM2; a test
compares it with the outputs of Meta's own code.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import NO_LATERALS, Features, FPNLaterals
from sam2_3dmed.encoders.precision import in_float32
from sam2_3dmed.model.mask_decoder import MaskDecoder
from sam2_3dmed.model.memory_attention import KeyValues, MemoryAttention
from sam2_3dmed.model.memory_bank import (
    NUM_MEMORIES,
    NUM_POINTERS,
    Bank,
    Memory,
    MemoryBank,
    SelfSortingBank,
    embedding_of,
)
from sam2_3dmed.model.prompts import Prompts
from sam2_3dmed.model.upsample import upsample

MEMORY_CHANNELS = 64


class HighResolution(NamedTuple):
    """The two finer feature levels after the decoder's own projections."""

    stride8: Tensor
    """(B, D, C/4, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C/8, 4h, 4w)."""


class Decoded(NamedTuple):
    """The output of the mask decoder for one slice."""

    logits: Tensor
    """(B, K, 4h, 4w) at stride 4."""
    pointer: Tensor
    """(B, C), SAM2's object pointer."""
    confidence: Tensor | None
    """(B,), the predicted IoU; None without a self-sorting bank."""


class SliceDecoder(nn.Module):
    """Decodes a slab slice by slice, each with the memories of the slices before it. Paper: 3.1; readings 3 and 4.

    The modules are upstream's, or have upstream's parameter names, so that weights load by name.

    Args:
        position_encoding: (1, h w, C), SAM2's sine encoding of each position.
        memory_position_encoding: (1, h w, 64), the same for memories.
        channels: C.
        num_classes: K.
        pointer_time: object pointers carry their distance (SAM 2.1: yes, SAM 2.0: no).
        self_sorting: MedSAM-2's bank instead of SAM2's; it uses neither temporal codes nor pointers.
        no_memory_token: a slice without memories passes through memory attention like the others, and attends to one
            learnt token. Without it, as SAM2's weights need it, the slice skips memory attention, and a learnt
            embedding is added to it.
    """

    position_encoding: Tensor
    memory_position_encoding: Tensor

    def __init__(
        self,
        *,
        memory_attention: MemoryAttention,
        memory_encoder: nn.Module,
        mask_decoder: MaskDecoder,
        object_pointer_proj: nn.Module,
        position_encoding: Tensor,
        memory_position_encoding: Tensor,
        channels: int,
        num_classes: int,
        pointer_time: bool = True,
        self_sorting: bool = False,
        no_memory_token: bool = False,
    ) -> None:
        super().__init__()
        self.self_sorting = self_sorting
        self.no_memory_token = no_memory_token
        self.channels = channels
        self.memory_attention = memory_attention
        self.memory_encoder = memory_encoder
        self.mask_decoder = mask_decoder
        self.object_pointer_proj = object_pointer_proj
        self.register_buffer("position_encoding", position_encoding, persistent=False)
        self.register_buffer("memory_position_encoding", memory_position_encoding, persistent=False)
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(channels, MEMORY_CHANNELS) if pointer_time else None
        )
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(NUM_MEMORIES, 1, 1, MEMORY_CHANNELS))
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, MEMORY_CHANNELS if no_memory_token else channels))
        # For one class the union map is complete, and a second path would only break the identity with SAM2.
        self.class_memory = nn.Conv2d(num_classes, MEMORY_CHANNELS, 1, bias=False) if num_classes > 1 else None
        if self.class_memory is not None:
            nn.init.zeros_(self.class_memory.weight)
        if self_sorting:
            self._freeze_unused()

    def start(self, num_slices: int, draw: int = 0) -> Bank:
        """An empty memory bank for a pass of `num_slices`; draw: see `SelfSortingBank`."""
        return SelfSortingBank(num_slices, draw) if self.self_sorting else MemoryBank(num_slices)

    def _freeze_unused(self) -> None:
        """Freeze what a self-sorting bank does not read, and the IoU head: its decisions have no gradient."""
        unused = [self.object_pointer_proj, self.mask_decoder.iou_prediction_head]
        for module in (*unused, self.temporal_positional_encoding_projection_layer):
            if module is not None:
                module.requires_grad_(False)
        self.memory_temporal_positional_encoding.requires_grad_(False)

    def project(self, features: Features, laterals: FPNLaterals = NO_LATERALS) -> HighResolution:
        """The finer levels of all slices after `laterals`, if any, and this branch's conv_s1 and conv_s0."""
        stride8 = _pointwise(self.mask_decoder.conv_s1, features.stride8, laterals.stride8)
        stride4 = _pointwise(self.mask_decoder.conv_s0, features.stride4, laterals.stride4)
        return HighResolution(stride8, stride4)

    def attend(self, context: Tensor, bank: Bank) -> Tensor:
        """Memory attention of one slice, (B, C, h, w) -> (B, C, h, w); without memories, see `no_memory_token`."""
        if bank.count == 0 and not self.no_memory_token:
            return context + self.no_memory_embedding.view(1, -1, 1, 1)
        tokens = context.flatten(2).transpose(1, 2)  # (B, h w, C)
        if bank.count == 0:
            token = self.no_memory_embedding.repeat(len(tokens), 1, 1)
            memory = self.memory_attention.project_pointers(token, torch.zeros_like(token))
        else:
            memory = bank.read(context) if isinstance(bank, SelfSortingBank) else self._read(bank)
        attended = self.memory_attention(tokens + 0.1 * self.position_encoding.to(tokens.dtype), memory)
        return attended.transpose(1, 2).unflatten(-1, context.shape[-2:])

    def temporal_bias(self, bank: MemoryBank) -> tuple[tuple[Tensor, ...], ...]:
        """The temporal bias of the keys of memories, layer by layer; made once for all slices that read a bank."""
        if bank.temporal_bias is None:
            codes = self.memory_temporal_positional_encoding.flatten(1)
            bank.temporal_bias = self.memory_attention.temporal_bias(codes)
        return bank.temporal_bias

    def decode(self, features: Tensor, stride8: Tensor, stride4: Tensor, prompts: Prompts | None = None) -> Decoded:
        """The masks of one slice.

        Args:
            features: (B, C, h, w), after memory attention.
            stride8, stride4: the slice's part of `project`.
            prompts: of the slice.
        """
        masks = in_float32(partial(self.mask_decoder, prompts=prompts), features, stride8, stride4)
        return Decoded(masks.logits, self.object_pointer_proj(masks.class_tokens.mean(dim=1)), masks.confidence)

    def encode_memory(self, z: Tensor, found: Decoded, attended: Tensor) -> Memory:
        """The memory of a slice: its features and the masks that were found in it.

        Args:
            z: (B, C, h, w), raw features, as in SAM2.
            found: the output of `decode`.
            attended: the output of `attend`, by which a self-sorting bank finds the slice again.
        """
        logits = found.logits
        union = logits.amax(dim=1, keepdim=True)  # the largest class probability; the class itself for K = 1
        size = (16 * z.shape[-2], 16 * z.shape[-1])
        mask = torch.sigmoid(upsample(union, size)) * 20 - 10
        memory, _ = self.memory_encoder(z, mask.to(z.dtype))
        if self.class_memory is not None:
            memory = memory + self.class_memory(F.avg_pool2d(torch.sigmoid(logits), 4))
        spatial = memory.flatten(2).transpose(1, 2)  # (B, h w, 64)
        position = self.memory_position_encoding.to(spatial.dtype)
        key_values = self.memory_attention.project_spatial(spatial, position)
        embedding = embedding_of(attended) if self.self_sorting else None
        return Memory(spatial, key_values, found.pointer, found.confidence, embedding)

    def _read(self, bank: MemoryBank) -> tuple[KeyValues, ...]:
        """The bank's keys and values for each layer: spatial memories first, then C / 64 tokens a pointer."""
        memories, rows = bank.spatial()
        pointers, distances = bank.pointers()
        tokens = torch.stack(pointers, dim=1).unflatten(-1, (-1, MEMORY_CHANNELS)).flatten(1, 2)  # (B, P C/64, 64)
        position = self._pointer_position(distances, bank, tokens)
        of_pointers = self.memory_attention.project_pointers(tokens, position)
        layers = []
        for layer, (bias, last) in enumerate(zip(self.temporal_bias(bank), of_pointers, strict=True)):
            keys = [m.key_values[layer].keys + bias[row] for m, row in zip(memories, rows, strict=True)]
            values = [m.key_values[layer].values for m in memories]
            layers.append(KeyValues(torch.cat([*keys, last.keys], dim=1), torch.cat([*values, last.values], dim=1)))
        return tuple(layers)

    def _pointer_position(self, distances: list[int], bank: MemoryBank, tokens: Tensor) -> Tensor:
        if self.temporal_positional_encoding_projection_layer is None:
            return torch.zeros_like(tokens)
        scale = max(min(bank.num_slices, NUM_POINTERS + 1) - 1, 1)
        share = torch.tensor(distances, dtype=torch.float32, device=tokens.device) / scale
        code = self.temporal_positional_encoding_projection_layer(_sine_1d(share, self.channels).to(tokens.dtype))
        return code.repeat_interleave(tokens.shape[1] // len(distances), dim=0).unsqueeze(0)


def _pointwise(conv: nn.Conv2d, planes: Tensor, before: nn.Conv2d | None = None) -> Tensor:
    """A 1 x 1 convolution of (B, D, C, h, w) as a matrix product, since the encoder's planes have channels last.

    before: a 1 x 1 convolution that comes first; both become one, whose weight is their product.
    """
    weight, bias = conv.weight.flatten(1), conv.bias
    if before is not None:
        assert bias is not None
        assert before.bias is not None
        with torch.autocast(weight.device.type, enabled=False):  # small, so in full precision
            weight, bias = weight @ before.weight.flatten(1), weight @ before.bias + bias
    tokens = in_float32(lambda x: F.linear(x, weight, bias), planes.permute(0, 1, 3, 4, 2))
    return tokens.permute(0, 1, 4, 2, 3)


def _sine_1d(position: Tensor, channels: int) -> Tensor:
    """(N,) positions -> (N, channels), the sine and cosine encoding of "Attention is all you need"."""
    half = channels // 2
    exponent = 2 * torch.div(torch.arange(half, device=position.device), 2, rounding_mode="floor") / half
    angles = position.unsqueeze(-1) / 10_000**exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
