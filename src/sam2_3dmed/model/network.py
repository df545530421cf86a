"""SAM2-3dMed, the whole network (paper 3, Figure 2): slices in, masks, boundaries and relative positions out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_3dmed.encoders.image_encoder import NO_LATERALS, Features, FPNLaterals, ImageEncoder
from sam2_3dmed.model.boundary import BoundaryDetector
from sam2_3dmed.model.slice_decoder import Bank, Memory, MemoryBank, SliceDecoder
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


class Prediction(NamedTuple):
    """What the network says of a slab; logits are at stride 4, and whoever needs H x W resizes them bilinearly."""

    segmentation: Tensor
    """P_seg, logits (B, K, D, H/4, W/4)."""
    boundary: Tensor | None
    """P_bd, logits (B, K, D, H/4, W/4); None without BD."""
    relative_position: Tensor | None
    """P_pos, (B, D, D) in slices; None without SRPP."""


class DecoderFeatures(NamedTuple):
    """What the decoders take of slices: the encoder's features, the finer levels through each branch's own projections,
    which makes a slice five times smaller. Levels as in `Features` but for their channels; or of one slice, without D.
    """

    z: Tensor
    """(B, D, C, h, w)."""
    stride8: Tensor
    """(B, D, C/4, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C/8, 4h, 4w)."""
    boundary_stride8: Tensor | None = None
    """The same of the boundary branch; None without BD."""
    boundary_stride4: Tensor | None = None
    boxes: Tensor | None = None
    """(B, D, K, 4), the prompt, see `boxes_around`; None for no box."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same change to every level."""
        return type(self)(*(None if level is None else change(level) for level in self))  # type: ignore[arg-type]

    def at(self, index: int) -> Self:
        """One slice."""
        return self.each(lambda level: level[:, index])

    def rows(self, start: int, stop: int) -> Self:
        """Some of B."""
        return self.each(lambda level: level[start:stop])

    @classmethod
    def cat(cls, parts: Sequence["DecoderFeatures"]) -> "DecoderFeatures":
        """Several as one, along the first dimension; the order in memory stays what it is."""
        levels = zip(*parts, strict=True)
        return cls(*(None if level[0] is None else torch.cat(level) for level in levels))  # type: ignore[arg-type]


class DecoderState(NamedTuple):
    """What the branches remember between the slices of one pass."""

    segmentation: Bank
    boundary: Bank


class DecodedSlice(NamedTuple):
    """What the branches make of a slice."""

    logits: Tensor
    """Of the masks, (B, K, 4h, 4w)."""
    boundary_logits: Tensor | None
    memory: Memory | None
    """For the segmentation's bank; None where no later slice reads it."""
    boundary_memory: Memory | None


class SAM2For3dMed(nn.Module):
    """Encoder, SRPP, BD and segmentation decoder. Paper: 3.1 to 3.3.

    srpp, boundary: None drops the part (Tables 4 and 5). box_every: whoever feeds it gives a box around each class on
    every so many slices of a volume; 0: it takes no prompts.
    """

    checkpointing = False
    draw = 0
    """Which random numbers a self-sorting memory takes in training, so that each step draws anew and can be repeated;
    prediction always takes the first."""

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

    def forward(self, slices: Tensor, boxes: Tensor | None = None) -> Prediction:
        """slices: (B, D, 1 to 3, H0, W0) in [0, 1]; the encoder brings them to H x W. boxes: (B, D, K, 4)."""
        return self.decode(self.encoder(slices), boxes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.segmentation.no_memory_embedding.device

    def save_memory(self, *, checkpointing: bool, slices_at_once: int | None) -> None:
        """Train with less memory and the same gradients, in more time.

        checkpointing: keep of SRPP, of every slice and of an encoder that trains only what goes in and out, and compute
        the rest again on the way back. slices_at_once: how many are encoded together, and decoded together where each
        is a slab of its own; none: all.
        """
        self.checkpointing = self.encoder.checkpointing = checkpointing
        self.encoder.slices_at_once = slices_at_once

    def decode(self, features: Features, boxes: Tensor | None = None) -> Prediction:
        """The trained part, from the encoder's features of a slab."""
        return self.decode_projected(self.project(features)._replace(boxes=boxes))

    def decode_pre_fpn(self, features: Features, boxes: Tensor | None = None) -> Prediction:
        """The same from `ImageEncoder.pre_fpn_features`."""
        return self.decode_projected(self.project(features, self.encoder.laterals)._replace(boxes=boxes))

    def project(self, features: Features, laterals: FPNLaterals = NO_LATERALS) -> DecoderFeatures:
        """The encoder's features as the decoders take them; laterals: what follows `pre_fpn_features`."""
        fine = self.segmentation.project(features, laterals)
        if self.boundary is None:
            return DecoderFeatures(features.z, *fine)
        return DecoderFeatures(features.z, *fine, *self.boundary.decoder.project(features, laterals))

    def decode_projected(self, features: DecoderFeatures) -> Prediction:
        """A slab of D slices: the context that they give each other, then slice by slice."""
        at_once = self.encoder.slices_at_once
        if not self._keeps_little or at_once is None or features.z.shape[1] > 1:
            return self._decode_slabs(features)
        # Single slices have no steps to compute again one by one, so a few of them take a step's place.
        starts = range(0, len(features.z), at_once)
        parts = [self._decode_slabs(features.rows(start, start + at_once)) for start in starts]
        return Prediction(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))  # type: ignore[arg-type]

    def _decode_slabs(self, features: DecoderFeatures) -> Prediction:
        context, relative_position = self.slice_context(features.z)
        depth = context.shape[1]
        state = self.start(depth)
        steps = [self.step(state, features.at(i), context[:, i]) for i in range(depth)]
        masks, boundaries = zip(*steps, strict=True)
        return Prediction(
            segmentation=torch.stack(masks, dim=2),
            boundary=None if boundaries[0] is None else torch.stack(boundaries, dim=2),
            relative_position=relative_position,
        )

    def slice_context(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The context that slices give each other, (B, D, C, h, w), and P_pos (B, D, D); z and None without SRPP."""
        if self.srpp is None:
            return z, None
        context, relative_position = self._compute(self.srpp, z)
        return context, relative_position

    def start(self, num_slices: int) -> DecoderState:
        """Empty memories, for a pass of `num_slices` calls of `step`: a slab, or a whole stack."""
        draw = self.draw if self.training else 0
        boundary = MemoryBank(num_slices) if self.boundary is None else self.boundary.decoder.start(num_slices, draw)
        return DecoderState(self.segmentation.start(num_slices, draw), boundary)

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next slice of a pass, which `state` then remembers as far as later slices read it.

        features: of the slice, (B, C, ., .) each level; context: (B, C, h, w), its share of `slice_context`.
        Returns: logits (B, K, 4h, 4w) of the masks, and of the boundaries or None.
        """
        found: DecodedSlice = self._compute(self._decode_slice, self._settled(state), features, context)
        for bank, memory in zip(state, (found.memory, found.boundary_memory), strict=True):
            if memory is not None:
                bank.append(memory)
        return found.logits, found.boundary_logits

    def _decode_slice(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> DecodedSlice:
        """A slice in the light of a state, which stays as it is: so it can be computed a second time."""
        z, boundary_logits, boundary_memory = features.z, None, None
        attended = z_seg = self.segmentation.attend(context, state.segmentation)
        if self.boundary is not None and self.boundary_to_segmentation is not None:
            assert features.boundary_stride8 is not None
            assert features.boundary_stride4 is not None
            fine = features.boundary_stride8, features.boundary_stride4
            found = self.boundary(context, z, *fine, state.boundary, features.boxes)
            z_seg = z_seg + self.boundary_to_segmentation(found.features)
            boundary_logits, boundary_memory = found.logits, found.memory
        decoded = self.segmentation.decode(z_seg, features.stride8, features.stride4, features.boxes)
        memory = self.segmentation.encode_memory(z, decoded, attended) if state.segmentation.will_be_read else None
        return DecodedSlice(decoded.logits, boundary_logits, memory, boundary_memory)

    @property
    def _keeps_little(self) -> bool:
        return self.checkpointing and torch.is_grad_enabled()

    def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; with checkpointing it is called again on the way back."""
        if not self._keeps_little:
            return function(*arguments)
        # Nothing here draws random numbers, so there is no state of them to keep.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _settled(self, state: DecoderState) -> DecoderState:
        """What a slice reads, as it must find it again on the way back, when later slices are remembered too."""
        if not self._keeps_little:
            return state
        # Made here once: made within slices, they would be made again for each.
        if isinstance(state.segmentation, MemoryBank) and state.segmentation.count > 0:
            self.segmentation.ages(state.segmentation)
        if isinstance(state.boundary, MemoryBank) and state.boundary.count > 0 and self.boundary is not None:
            self.boundary.decoder.ages(state.boundary)
        return DecoderState(*(bank.as_it_is() for bank in state))
