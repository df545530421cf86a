"""The slice decoder: SAM2's memory attention, mask decoder and memory encoder, without prompts, for K classes.

Used twice: for the segmentation (paper 3.1) and for the boundaries (paper 3.3). For K = 1 it equals SAM2; a test
compares it with the outputs of Meta's own code.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import Features
from sam2_3dmed.encoders.precision import in_float32
from sam2_3dmed.model.mask_decoder import MaskDecoder, Masks, Upscaled, upsample
from sam2_3dmed.model.memory_attention import KeyValues, MemoryAttention
from sam2_3dmed.model.memory_bank import (
    MEMORY_CHANNELS,
    NUM_MEMORIES,
    NUM_POINTERS,
    Bank,
    Memory,
    MemoryBank,
    SelfSortingBank,
    embedding_of,
)
from sam2_3dmed.model.prompts import Prompts


class DecodedSlice(NamedTuple):
    """The output of a slice decoder for one slice."""

    features: Tensor  # (B, C, h, w), from which the masks are made
    logits: Tensor  # (B, K, 4h, 4w), without slice mixing
    upscaled: Upscaled
    memory: Memory | None  # For the bank; None where no later slice reads it


class SliceDecoder(nn.Module):
    """Decodes a slab slice by slice, each with the memories of the slices before it. Paper: 3.1; readings 3 and 4.

    The modules are upstream's, or have upstream's parameter names, so that weights load by name.

    Args:
        sam2: upstream's configuration, `build.sam2_config`.
        pointer_time: object pointers carry their distance (SAM 2.1: yes, SAM 2.0: no).
        self_sorting: MedSAM-2's bank instead of SAM2's; it uses neither temporal codes nor pointers.
        no_memory_token: a slice without memories passes through memory attention like the others, and attends to one
            learnt token. Without it, as SAM2's weights need it, the slice skips memory attention, and a learnt
            embedding is added to it.
        memory_pooling: see `MemoryAttention`.
        has_memory: without, each slice is decoded by itself, as SAM2 decodes images.
    """

    position_encoding: Tensor
    memory_position_encoding: Tensor

    def __init__(
        self,
        sam2: Any,
        mask_decoder: MaskDecoder,
        *,
        pointer_time: bool,
        self_sorting: bool,
        no_memory_token: bool,
        memory_pooling: int = 1,
        has_memory: bool = True,
    ) -> None:
        from transformers.models.sam2_video import modeling_sam2_video as upstream

        super().__init__()
        channels, grid = sam2.memory_attention_hidden_size, sam2.image_size // 16
        self.channels, self.self_sorting, self.has_memory = channels, self_sorting, has_memory
        self.no_memory_token = no_memory_token and has_memory
        if not has_memory:
            self.mask_decoder = mask_decoder
            self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, channels))
            return
        self.memory_attention = MemoryAttention(
            channels=channels,
            feed_forward=sam2.memory_attention_feed_forward_hidden_size,
            num_layers=sam2.memory_attention_num_layers,
            grid=grid,
            memory_channels=MEMORY_CHANNELS,
            theta=sam2.rope_parameters["rope_theta"],
            pooling=memory_pooling,
        )
        self.memory_encoder = upstream.Sam2VideoMemoryEncoder(sam2)
        self.mask_decoder = mask_decoder
        self.object_pointer_proj = upstream.Sam2VideoFeedForward(channels, channels, channels, 3)
        self.register_buffer("position_encoding", sine_encoding(channels, grid), persistent=False)
        self.register_buffer("memory_position_encoding", sine_encoding(MEMORY_CHANNELS, grid), persistent=False)
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(channels, MEMORY_CHANNELS) if pointer_time else None
        )
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(NUM_MEMORIES, 1, 1, MEMORY_CHANNELS))
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, MEMORY_CHANNELS if no_memory_token else channels))
        num_classes = mask_decoder.class_hypernetworks.num_classes
        # For one class the union map is complete, and a second path would only break the identity with SAM2.
        self.class_memory = nn.Conv2d(num_classes, MEMORY_CHANNELS, 1, bias=False) if num_classes > 1 else None
        if self_sorting:
            self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Freeze what a self-sorting bank does not read, and the IoU head: its decisions have no gradient."""
        unused = ("object_pointer_proj.", "mask_decoder.iou_prediction_head.", "temporal_", "memory_temporal_")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(unused))

    def project(
        self, features: Features, lateral8: nn.Conv2d | None = None, lateral4: nn.Conv2d | None = None
    ) -> Features:
        """The features with this branch's finer levels, (B, D, C/4, 2h, 2w) and (B, D, C/8, 4h, 4w).

        lateral8, lateral4: convolutions that the finer levels still lack, `ImageEncoder.laterals`.
        """
        stride8 = _pointwise(self.mask_decoder.conv_s1, features.stride8, lateral8)
        stride4 = _pointwise(self.mask_decoder.conv_s0, features.stride4, lateral4)
        return Features(features.z, stride8, stride4)

    def start(self, num_slices: int, draw: int = 0) -> Bank:
        """An empty memory bank for a pass of `num_slices`; draw: see `SelfSortingBank`."""
        return SelfSortingBank(num_slices, draw) if self.self_sorting else MemoryBank(num_slices)

    def attend(self, context: Tensor, bank: Bank) -> Tensor:
        """Memory attention of one slice, (B, C, h, w) -> (B, C, h, w); without memories, see `no_memory_token`."""
        if bank.count == 0 and not self.no_memory_token:
            return context + self.no_memory_embedding.view(1, -1, 1, 1)
        log_counts = None
        tokens = context.flatten(2).transpose(1, 2)  # (B, h w, C)
        if bank.count == 0:
            token = self.no_memory_embedding.repeat(len(tokens), 1, 1)
            memory = self.memory_attention.project_pointers(token, torch.zeros_like(token))
        elif isinstance(bank, SelfSortingBank):
            memory = bank.read(context)
        else:
            memory, log_counts = self._read(bank)
        attended = self.memory_attention(tokens + 0.1 * self.position_encoding.to(tokens.dtype), memory, log_counts)
        return attended.transpose(1, 2).unflatten(-1, context.shape[-2:])

    def finish(
        self, features: Tensor, attended: Tensor, fine: Features, bank: Bank, prompts: Prompts | None
    ) -> DecodedSlice:
        """The masks of one slice, and its memory where a later slice reads it. The bank stays unchanged.

        Args:
            features: (B, C, h, w), the output of `attend` and what other parts made of it, or added to it.
            fine: the slice's part of `project`.
        """
        masks = self.decode(features, fine.stride8, fine.stride4, prompts)
        memory = self.encode_memory(fine.z, masks, attended) if bank.will_be_read else None
        return DecodedSlice(features, masks.logits, masks.upscaled, memory)

    def decode(self, features: Tensor, stride8: Tensor, stride4: Tensor, prompts: Prompts | None = None) -> Masks:
        """The masks of one slice: see `MaskDecoder.forward`."""
        masks: Masks = in_float32(partial(self.mask_decoder, prompts=prompts), features, stride8, stride4)
        return masks

    def encode_memory(self, z: Tensor, masks: Masks, attended: Tensor) -> Memory:
        """The memory of a slice: its raw features (B, C, h, w), as in SAM2, and the masks that were found in it.

        A self-sorting bank finds the slice again by `attended`, the output of `attend`.
        """
        pointer = self.object_pointer_proj(masks.class_tokens.mean(dim=1))
        union = masks.logits.amax(dim=1, keepdim=True)  # the largest class probability; the class itself for K = 1
        probability = torch.sigmoid(upsample(union, (16 * z.shape[-2], 16 * z.shape[-1])))
        memory, _ = self.memory_encoder(z, (probability * 20 - 10).to(z.dtype))
        if self.class_memory is not None:
            memory = memory + self.class_memory(F.avg_pool2d(torch.sigmoid(masks.logits), 4))
        spatial = memory.flatten(2).transpose(1, 2)  # (B, h w, 64)
        position = self.memory_position_encoding.to(spatial.dtype)
        key_values = self.memory_attention.project_spatial(spatial, position)
        embedding = embedding_of(attended) if self.self_sorting else None
        return Memory(spatial, key_values, pointer, masks.confidence, embedding)

    def snapshot(self, bank: Bank) -> Bank:
        """A copy of a bank for a slice that is computed again in the backward pass."""
        if isinstance(bank, MemoryBank) and bank.count > 0:
            self._temporal_bias(bank)  # made here once; inside the slices it would be made again for each
        return bank.snapshot()

    def _temporal_bias(self, bank: MemoryBank) -> tuple[tuple[Tensor, ...], ...]:
        """The temporal bias of the keys of memories, layer by layer; made once for all slices that read a bank."""
        if bank.temporal_bias is None:
            codes = self.memory_temporal_positional_encoding.flatten(1)
            bank.temporal_bias = self.memory_attention.temporal_bias(codes)
        return bank.temporal_bias

    def _read(self, bank: MemoryBank) -> tuple[tuple[KeyValues, ...], Tensor | None]:
        """The bank's keys and values for each layer: spatial memories first, then C / 64 tokens a pointer.

        Also `MemoryAttention.log_counts` of these.
        """
        memories, rows = bank.spatial()
        pointers, distances = bank.pointers()
        tokens = torch.stack(pointers, dim=1).unflatten(-1, (-1, MEMORY_CHANNELS)).flatten(1, 2)  # (B, P C/64, 64)
        position = self._pointer_position(distances, bank, tokens)
        of_pointers = self.memory_attention.project_pointers(tokens, position)
        layers = []
        for layer, (bias, last) in enumerate(zip(self._temporal_bias(bank), of_pointers, strict=True)):
            keys = [m.key_values[layer].keys + bias[row] for m, row in zip(memories, rows, strict=True)]
            values = [m.key_values[layer].values for m in memories]
            layers.append(KeyValues(torch.cat([*keys, last.keys], dim=1), torch.cat([*values, last.values], dim=1)))
        num_spatial = layers[0].keys.shape[1] - tokens.shape[1]
        return tuple(layers), self.memory_attention.log_counts(num_spatial, of_pointers[0].keys)

    def _pointer_position(self, distances: list[int], bank: MemoryBank, tokens: Tensor) -> Tensor:
        """The code of each pointer's distance, as a share of the farthest that SAM2 codes; the same for its tokens."""
        from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe

        if self.temporal_positional_encoding_projection_layer is None:
            return torch.zeros_like(tokens)
        scale = max(min(bank.num_slices, NUM_POINTERS + 1) - 1, 1)
        share = torch.tensor(distances, dtype=torch.float32, device=tokens.device) / scale
        sine = get_1d_sine_pe(share, self.channels).to(tokens.dtype)
        code = self.temporal_positional_encoding_projection_layer(sine)
        return code.repeat_interleave(tokens.shape[1] // len(distances), dim=0).unsqueeze(0)


def sine_encoding(channels: int, grid: int) -> Tensor:
    """(1, h w, C): SAM2's sine encoding of each position, as tokens."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPositionEmbeddingSine

    encoding = Sam2VideoPositionEmbeddingSine(num_position_features=channels // 2, normalize=True)
    plane: Tensor = encoding(torch.Size((1, channels, grid, grid)), torch.device("cpu"), torch.float32)
    return plane.flatten(2).transpose(1, 2).contiguous()


def _pointwise(conv: nn.Conv2d, planes: Tensor, before: nn.Conv2d | None) -> Tensor:
    """A 1 x 1 convolution of (B, D, C, h, w) as a matrix product, since the encoder's planes have channels last.

    It becomes one with the 1 x 1 convolution `before` it: the product of their weights.
    """
    weight, bias = conv.weight.flatten(1), conv.bias
    if before is not None:
        assert bias is not None
        assert before.bias is not None
        with torch.autocast(weight.device.type, enabled=False):  # small, so in full precision
            weight, bias = weight @ before.weight.flatten(1), weight @ before.bias + bias
    tokens = in_float32(lambda x: F.linear(x, weight, bias), planes.permute(0, 1, 3, 4, 2))
    return tokens.permute(0, 1, 4, 2, 3)
