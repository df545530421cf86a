"""SAM2-3dMed, the whole network (paper 3, Figure 2): slices in, masks, boundaries and relative positions out."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_3dmed.encoders.image_encoder import NO_LATERALS, Features, ImageEncoder
from sam2_3dmed.model.boundary import BoundaryDetector
from sam2_3dmed.model.memory_bank import Bank, Memory, MemoryBank
from sam2_3dmed.model.prompts import Prompts
from sam2_3dmed.model.slice_decoder import SliceDecoder
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


class Prediction(NamedTuple):
    """The output of the network for slabs. Logits are at stride 4; resize them bilinearly to H x W."""

    segmentation: Tensor
    """P_seg, logits (B, K, D, H/4, W/4)."""
    boundary: Tensor | None
    """P_bd, logits (B, K, D, H/4, W/4); None without BD."""
    relative_position: Tensor | None
    """P_pos, (B, D, D) in slices; None without SRPP."""


class DecoderFeatures(NamedTuple):
    """The input of the decoders: the encoder's features, with the finer levels projected by each branch.

    The projections make a slice five times smaller. The features of a single slice lack the dimension D.
    """

    z: Tensor
    """(B, D, C, h, w)."""
    stride8: Tensor
    """(B, D, C/4, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C/8, 4h, 4w)."""
    boundary_stride8: Tensor | None = None
    """As `stride8`, for the boundary branch; None without BD."""
    boundary_stride4: Tensor | None = None
    prompts: Prompts | None = None
    """Of the slices; None for a network without prompts."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        *levels, prompts = self
        return [tensor for tensor in (*levels, *(prompts or ())) if tensor is not None]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same structure with other tensors, in the order of `tensors()`."""
        *levels, prompts = self
        rest = iter(tensors)
        changed = [None if level is None else next(rest) for level in levels]
        return type(self)(*changed, None if prompts is None else Prompts(*rest))  # type: ignore[arg-type, call-arg]

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor."""
        return self.with_tensors(map(change, self.tensors()))

    def at(self, index: int) -> Self:
        """Slice `index` of every slab."""
        return self.each(lambda tensor: tensor[:, index])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Several as one, along the first dimension."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return parts[0].with_tensors(torch.cat(column) for column in columns)


class DecoderState(NamedTuple):
    """The memory banks of the two branches during one pass."""

    segmentation: Bank
    boundary: Bank


class DecodedSlice(NamedTuple):
    """The outputs of both branches for one slice."""

    logits: Tensor
    """Of the masks, (B, K, 4h, 4w)."""
    boundary_logits: Tensor | None
    memory: Memory | None
    """For the segmentation's bank; None where no later slice reads it."""
    boundary_memory: Memory | None


class SAM2For3dMed(nn.Module):
    """Encoder, SRPP, BD and segmentation decoder. Paper: 3.1 to 3.3.

    Args:
        srpp, boundary: None drops the part (Tables 4 and 5).
        box_every: the network takes a box around each class on every so many slices of a volume; 0: no prompts.

    Attributes:
        activation_checkpointing: see `save_memory`.
        draw: seed of the random numbers of a self-sorting memory in training. Each step has its own, so that it can be
            repeated. Prediction always takes 0.
    """

    activation_checkpointing = False
    draw = 0

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        segmentation: SliceDecoder,
        srpp: SliceRelativePositionPredictor | None,
        boundary: BoundaryDetector | None,
        box_every: int = 0,
    ) -> None:
        super().__init__()
        self.box_every = box_every
        self.encoder = encoder
        self.srpp = srpp
        self.boundary = boundary
        self.segmentation = segmentation
        channels = segmentation.channels
        self.boundary_to_segmentation = nn.Conv2d(channels, channels, kernel_size=1) if boundary is not None else None
        if self.boundary_to_segmentation is not None:  # starts at zero: at step 0 the segmentation is SAM2's own
            nn.init.zeros_(self.boundary_to_segmentation.weight)
            nn.init.zeros_(self.boundary_to_segmentation.bias)  # type: ignore[arg-type]

    def forward(self, slices: Tensor, prompts: Prompts | None = None) -> Prediction:
        """Predict slabs.

        Args:
            slices: (B, D, 1 to 3, H0, W0) in [0, 1]; the encoder resizes them to H x W.
            prompts: of the slices (B, D), for a network with prompts.
        """
        return self.decode(self.encoder(slices), prompts)

    def decode(self, features: Features, prompts: Prompts | None = None, *, pre_fpn: bool = False) -> Prediction:
        """Predict slabs from the encoder's features; pre_fpn: from `ImageEncoder.pre_fpn_features`."""
        return self.decode_slabs(self.project(features, pre_fpn=pre_fpn)._replace(prompts=prompts))

    def project(self, features: Features, *, pre_fpn: bool = False) -> DecoderFeatures:
        """The encoder's features as the decoders take them, without prompts."""
        laterals = self.encoder.laterals if pre_fpn else NO_LATERALS
        fine = self.segmentation.project(features, laterals)
        if self.boundary is None:
            return DecoderFeatures(features.z, *fine)
        return DecoderFeatures(features.z, *fine, *self.boundary.decoder.project(features, laterals))

    def decode_slabs(self, features: DecoderFeatures) -> Prediction:
        """Predict slabs of D slices: SRPP's context of all slices first, then slice by slice."""
        depth, at_once = features.z.shape[1], self.encoder.slices_at_once
        if depth == 1 and self._checkpoints and at_once is not None and len(features.z) > at_once:
            # A single slice has no later step that could be computed again alone, so a few slices take a step's place.
            lots = zip(*(tensor.split(at_once) for tensor in features.tensors()), strict=True)
            parts = [self.decode_slabs(features.with_tensors(lot)) for lot in lots]
            joined = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
            return Prediction(*joined)  # type: ignore[arg-type]
        context, relative_position = self.slice_context(features.z)
        state = self.start(depth)
        steps = [self.step(state, features.at(i), context[:, i]) for i in range(depth)]
        masks, boundaries = zip(*steps, strict=True)
        return Prediction(
            segmentation=torch.stack(masks, dim=2),
            boundary=None if boundaries[0] is None else torch.stack(boundaries, dim=2),
            relative_position=relative_position,
        )

    def slice_context(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The context (B, D, C, h, w) that slices give each other, and P_pos (B, D, D); without SRPP z and None."""
        if self.srpp is None:
            return z, None
        context, relative_position = self._compute(self.srpp, z)
        return context, relative_position

    def start(self, num_slices: int) -> DecoderState:
        """Empty memories for a pass of `num_slices` calls of `step`: a slab, or a whole volume."""
        draw = self.draw if self.training else 0
        boundary = MemoryBank(num_slices) if self.boundary is None else self.boundary.decoder.start(num_slices, draw)
        return DecoderState(self.segmentation.start(num_slices, draw), boundary)

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict the next slice of a pass, and add its memories to `state` where later slices read them.

        Args:
            features: of the slice, without the dimension D.
            context: (B, C, h, w), the slice's part of `slice_context`.

        Returns:
            Logits (B, K, 4h, 4w) of the masks, and of the boundaries or None.
        """
        found: DecodedSlice = self._compute(self._decode_slice, self._state_to_read(state), features, context)
        for bank, memory in zip(state, (found.memory, found.boundary_memory), strict=True):
            if memory is not None:
                bank.append(memory)
        return found.logits, found.boundary_logits

    def _decode_slice(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> DecodedSlice:
        """Decode one slice, and leave the state unchanged, so that the slice can be computed a second time."""
        z, prompts, boundary_logits, boundary_memory = features.z, features.prompts, None, None
        attended = z_seg = self.segmentation.attend(context, state.segmentation)
        if self.boundary is not None and self.boundary_to_segmentation is not None:
            assert features.boundary_stride8 is not None
            assert features.boundary_stride4 is not None
            fine = features.boundary_stride8, features.boundary_stride4
            found = self.boundary(context, z, *fine, state.boundary, prompts)
            z_seg = z_seg + self.boundary_to_segmentation(found.features)
            boundary_logits, boundary_memory = found.logits, found.memory
        decoded = self.segmentation.decode(z_seg, features.stride8, features.stride4, prompts)
        memory = self.segmentation.encode_memory(z, decoded, attended) if state.segmentation.will_be_read else None
        return DecodedSlice(decoded.logits, boundary_logits, memory, boundary_memory)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.segmentation.no_memory_embedding.device

    @property
    def needs_reference(self) -> bool:
        """Whether prediction needs a reference mask, to draw prompts from."""
        return self.box_every > 0

    def prompts_from_labels(self, labels: Tensor, values: Sequence[int], positions: Tensor) -> Prompts | None:
        """The prompts of slices, from their labels: see `Prompts.from_labels`; None for a network without prompts."""
        return Prompts.from_labels(labels, values, positions, self.box_every) if self.needs_reference else None

    def prompts_from_stack(self, labels: NDArray[Any], values: Sequence[int]) -> Prompts | None:
        """The prompts of a volume, from its labels (N, H, W): see `Prompts.from_stack`."""
        return Prompts.from_stack(labels, values, self.box_every) if self.needs_reference else None

    def save_memory(self, *, activation_checkpointing: bool, slices_at_once: int | None) -> None:
        """Train with less memory and the same gradients, in more time.

        Args:
            activation_checkpointing: keep only the inputs and outputs of SRPP, of every slice and of a training
                encoder, and compute the rest again in the backward pass.
            slices_at_once: how many slices are encoded together, and decoded together where each is a slab of its own;
                None: all.
        """
        self.activation_checkpointing = self.encoder.activation_checkpointing = activation_checkpointing
        self.encoder.slices_at_once = slices_at_once

    @property
    def _checkpoints(self) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled()

    def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function, which is called again in the backward pass if activations are checkpointed."""
        if not self._checkpoints:
            return function(*arguments)
        # Nothing here draws random numbers, so there is no random state to keep.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _state_to_read(self, state: DecoderState) -> DecoderState:
        """The state for a slice to read. With checkpointing a copy, since the backward pass reads it again."""
        if not self._checkpoints:
            return state
        # The biases are made here once; inside the slices they would be made again for each.
        if isinstance(state.segmentation, MemoryBank) and state.segmentation.count > 0:
            self.segmentation.temporal_bias(state.segmentation)
        if isinstance(state.boundary, MemoryBank) and state.boundary.count > 0 and self.boundary is not None:
            self.boundary.decoder.temporal_bias(state.boundary)
        return DecoderState(*(bank.snapshot() for bank in state))
