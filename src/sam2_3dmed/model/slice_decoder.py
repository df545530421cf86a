"""The slice decoder: SAM2's memory attention, mask decoder and memory encoder, without prompts, for K classes.

Used twice: for the segmentation (paper 3.1) and for the boundaries (paper 3.3). For K = 1 it is SAM2 to the last
digits, which a test against Meta's own outputs proves.
"""

import copy
from collections import deque
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import NO_LATERALS, Features, FPNLaterals
from sam2_3dmed.encoders.precision import in_float32
from sam2_3dmed.model.mask_decoder import MaskDecoder
from sam2_3dmed.model.memory_attention import KeyValues, MemoryAttention
from sam2_3dmed.model.self_sorting_memory import SelfSortingBank, embedding_of
from sam2_3dmed.model.upsample import upsample

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
    """(B, h w, 64)."""
    read: tuple[KeyValues, ...]
    """What each layer of memory attention reads of it, but for its age."""
    pointer: Tensor
    """(B, C), SAM2's object pointer."""
    confidence: Tensor | None = None
    """(B,), the IoU that the mask decoder predicts; for a self-sorting bank only, as is the next."""
    embedding: Tensor | None = None
    """(B, C h w), see `embedding_of`."""


class Decoded(NamedTuple):
    """What the mask decoder makes of a slice."""

    logits: Tensor
    """(B, K, 4h, 4w) at stride 4."""
    pointer: Tensor
    """(B, C), SAM2's object pointer."""
    confidence: Tensor | None
    """(B,), the predicted IoU; None where nobody asks for it."""


class MemoryBank:
    """The slices a branch has seen: SAM2's choice of the first one and the latest ones, so its size is bounded.

    num_slices: how many slices will pass; the pointers' distances are coded as a share of it.
    """

    def __init__(self, num_slices: int) -> None:
        self.num_slices = num_slices
        self.count = 0
        self.first: Memory | None = None
        self.ages: tuple[tuple[Tensor, ...], ...] | None = None
        """See `SliceDecoder.ages`."""
        self._spatial: deque[Memory] = deque(maxlen=NUM_MEMORIES - 1)
        self._pointers: deque[Tensor] = deque(maxlen=NUM_POINTERS)

    @property
    def will_be_read(self) -> bool:
        """Whether a slice comes after the next one to be added; the last slice's memory would be made for nobody."""
        return self.count + 1 < self.num_slices

    def as_it_is(self) -> "MemoryBank":
        """A copy, which stays as it is when more is added here; the memories are shared."""
        now = copy.copy(self)
        now._spatial, now._pointers = self._spatial.copy(), self._pointers.copy()
        return now

    def append(self, memory: Memory) -> None:
        """Add the next slice's memory."""
        if self.first is None:
            self.first = memory
        else:
            self._spatial.append(memory)
            self._pointers.append(memory.pointer)
        self.count += 1

    def spatial(self) -> tuple[list[Memory], list[int]]:
        """The memories whose places are read, and each one's row of SAM2's temporal encoding.

        The row is the distance - 1, and 6 for the first slice.
        """
        if self.first is None:
            return [], []
        recent = list(reversed(self._spatial))
        return [self.first, *recent], [NUM_MEMORIES - 1, *range(len(recent))]

    def pointers(self) -> tuple[list[Tensor], list[int]]:
        """The object pointers, and for each its distance in slices."""
        if self.first is None:
            return [], []
        recent = list(reversed(self._pointers))
        return [self.first.pointer, *recent], [self.count, *range(1, len(recent) + 1)]


Bank = MemoryBank | SelfSortingBank


class SliceDecoder(nn.Module):
    """Decodes a stack slice by slice, each in the light of those before it. Paper: 3.1; readings 3 and 4.

    The modules are upstream's, or have upstream's parameter names, so that weights load by name.
    num_classes: K. place_code (1, h w, C), memory_code (1, h w, 64): SAM2's code of each place, as tokens.
    pointer_time: whether pointers carry their distance (SAM 2.1 does, SAM 2.0 does not). self_sorting: MedSAM-2's bank
    instead of SAM2's, which has no use for times and pointers. no_memory_token: a slice without memories passes through
    memory attention as the others do and reads one learned token there; otherwise, as SAM2's weights want it, it passes
    by and a learned embedding is added to it.
    """

    place_code: Tensor
    memory_code: Tensor

    def __init__(
        self,
        *,
        memory_attention: MemoryAttention,
        memory_encoder: nn.Module,
        mask_decoder: MaskDecoder,
        object_pointer_proj: nn.Module,
        place_code: Tensor,
        memory_code: Tensor,
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
        self.register_buffer("place_code", place_code, persistent=False)
        self.register_buffer("memory_code", memory_code, persistent=False)
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(channels, MEMORY_CHANNELS) if pointer_time else None
        )
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(NUM_MEMORIES, 1, 1, MEMORY_CHANNELS))
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, MEMORY_CHANNELS if no_memory_token else channels))
        # For one class the union map says it all; a second path would only break the identity with SAM2.
        self.class_memory = nn.Conv2d(num_classes, MEMORY_CHANNELS, 1, bias=False) if num_classes > 1 else None
        if self.class_memory is not None:
            nn.init.zeros_(self.class_memory.weight)
        if self_sorting:
            self._freeze_unused()

    def start(self, num_slices: int, draw: int = 0) -> Bank:
        """An empty memory for a pass of so many slices; draw: see `SelfSortingBank`."""
        return SelfSortingBank(num_slices, draw) if self.self_sorting else MemoryBank(num_slices)

    def _freeze_unused(self) -> None:
        """What a self-sorting bank does not read; and predicted IoUs decide, so that no gradient reaches them."""
        unused = [self.object_pointer_proj, self.mask_decoder.iou_prediction_head]
        for module in (*unused, self.temporal_positional_encoding_projection_layer):
            if module is not None:
                module.requires_grad_(False)
        self.memory_temporal_positional_encoding.requires_grad_(False)

    def project(self, features: Features, laterals: FPNLaterals = NO_LATERALS) -> HighResolution:
        """The finer levels of all slices through this branch's conv_s1 and conv_s0, and `laterals` before those."""
        stride8 = _pointwise(self.mask_decoder.conv_s1, features.stride8, laterals.stride8)
        stride4 = _pointwise(self.mask_decoder.conv_s0, features.stride4, laterals.stride4)
        return HighResolution(stride8, stride4)

    def attend(self, context: Tensor, bank: Bank) -> Tensor:
        """One slice in the light of the bank.

        context: (B, C, h, w). Returns: the same shape; the first slice gets what `no_memory_token` says instead.
        """
        if bank.count == 0 and not self.no_memory_token:
            return context + self.no_memory_embedding.view(1, -1, 1, 1)
        places = context.flatten(2).transpose(1, 2)  # (B, h w, C)
        if bank.count == 0:
            token = self.no_memory_embedding.repeat(len(places), 1, 1)
            memory = self.memory_attention.of_pointers(token, torch.zeros_like(token))
        else:
            memory = bank.read(context) if isinstance(bank, SelfSortingBank) else self._read(bank)
        attended = self.memory_attention(places + 0.1 * self.place_code.to(places.dtype), memory)
        return attended.transpose(1, 2).unflatten(-1, context.shape[-2:])

    def ages(self, bank: MemoryBank) -> tuple[tuple[Tensor, ...], ...]:
        """What a memory's age adds to its keys, layer by layer; made once for all slices that read a bank."""
        if bank.ages is None:
            bank.ages = self.memory_attention.ages(self.memory_temporal_positional_encoding.flatten(1))
        return bank.ages

    def decode(self, features: Tensor, stride8: Tensor, stride4: Tensor, boxes: Tensor | None = None) -> Decoded:
        """The masks of one slice.

        features: (B, C, h, w); stride8, stride4: the slice's share of `project`; boxes: see `MaskDecoder.forward`.
        """
        masks = in_float32(partial(self.mask_decoder, boxes=boxes), features, stride8, stride4)
        return Decoded(masks.logits, self.object_pointer_proj(masks.class_tokens.mean(dim=1)), masks.confidence)

    def encode_memory(self, z: Tensor, found: Decoded, attended: Tensor) -> Memory:
        """The memory of a slice: its raw features with what was found in it.

        z: (B, C, h, w), raw, as in SAM2; attended: the same after memory attention, by which MedSAM-2 finds it again.
        """
        logits = found.logits
        union = logits.amax(dim=1, keepdim=True)  # the largest class probability; itself for K = 1
        size = (16 * z.shape[-2], 16 * z.shape[-1])
        mask = torch.sigmoid(upsample(union, size)) * 20 - 10
        memory, _ = self.memory_encoder(z, mask.to(z.dtype))
        if self.class_memory is not None:
            memory = memory + self.class_memory(F.avg_pool2d(torch.sigmoid(logits), 4))
        spatial = memory.flatten(2).transpose(1, 2)  # (B, h w, 64)
        read = self.memory_attention.of_places(spatial, self.memory_code.to(spatial.dtype))
        embedding = embedding_of(attended) if self.self_sorting else None
        return Memory(spatial, read, found.pointer, found.confidence, embedding)

    def _read(self, bank: MemoryBank) -> tuple[KeyValues, ...]:
        """The bank as each layer reads it: the memories' places, then the pointers' tokens, C / 64 a pointer."""
        memories, rows = bank.spatial()
        pointers, distances = bank.pointers()
        tokens = torch.stack(pointers, dim=1).unflatten(-1, (-1, MEMORY_CHANNELS)).flatten(1, 2)  # (B, P C/64, 64)
        pointer_read = self.memory_attention.of_pointers(tokens, self._pointer_position(distances, bank, tokens))
        layers = []
        for layer, (ages, last) in enumerate(zip(self.ages(bank), pointer_read, strict=True)):
            keys = [m.read[layer].keys + ages[row] for m, row in zip(memories, rows, strict=True)]
            values = [m.read[layer].values for m in memories]
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
    """A 1 x 1 convolution of (B, D, C, h, w), as the product it is: the encoder's planes have channels last.

    before: one that comes first; both in one, whose weight is their product.
    """
    weight, bias = conv.weight.flatten(1), conv.bias
    if before is not None:
        assert bias is not None
        assert before.bias is not None
        with torch.autocast(weight.device.type, enabled=False):  # small, so with all digits
            weight, bias = weight @ before.weight.flatten(1), weight @ before.bias + bias
    places = in_float32(lambda x: F.linear(x, weight, bias), planes.permute(0, 1, 3, 4, 2))
    return places.permute(0, 1, 4, 2, 3)


def _sine_1d(position: Tensor, channels: int) -> Tensor:
    """(N,) positions -> (N, channels), the sine and cosine code of "Attention is all you need"."""
    half = channels // 2
    exponent = 2 * torch.div(torch.arange(half, device=position.device), 2, rounding_mode="floor") / half
    angles = position.unsqueeze(-1) / 10_000**exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
