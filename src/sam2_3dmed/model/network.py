"""SAM2-3dMed, the whole network (paper 3, Figure 2): slices in, masks, boundaries and relative positions out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from sam2_3dmed.model.boundary import BoundaryDetector
from sam2_3dmed.model.encoder import Features, ImageEncoder
from sam2_3dmed.model.slice_decoder import MemoryBank, SliceDecoder
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor


class Prediction(NamedTuple):
    """What the network says of a window; logits are at stride 4, and whoever needs H x W resizes them bilinearly."""

    segmentation: Tensor
    """P_seg, logits (B, K, D, H/4, W/4)."""
    boundary: Tensor | None
    """P_bd, logits (B, K, D, H/4, W/4); None without BD."""
    relative_position: Tensor | None
    """P_pos, (B, D, D) in slices; None without SRPP."""


class DecoderFeatures(NamedTuple):
    """What the decoders take of the encoder's features: the finer levels through each branch's own projections, which
    makes a slice five times smaller. Levels as in `Features` but for their channels; or of one slice, without D.
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

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same change to every level."""
        return type(self)(*(None if level is None else change(level) for level in self))  # type: ignore[arg-type]

    def at(self, index: int) -> Self:
        """One slice."""
        return self.each(lambda level: level[:, index])

    @classmethod
    def stack(cls, parts: Sequence["DecoderFeatures"], dim: int = 0) -> "DecoderFeatures":
        """Several of equal shape as one, along a new dimension."""
        levels = zip(*parts, strict=True)
        return cls(*(None if level[0] is None else torch.stack(level, dim) for level in levels))  # type: ignore[arg-type]


class DecoderState(NamedTuple):
    """What the branches remember between the slices of one pass."""

    segmentation: MemoryBank
    boundary: MemoryBank


class SAM2For3dMed(nn.Module):
    """Encoder, SRPP, BD and segmentation decoder. Paper: 3.1 to 3.3.

    srpp, boundary: None drops the part (Tables 4 and 5).
    """

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        segmentation: SliceDecoder,
        srpp: SliceRelativePositionPredictor | None,
        boundary: BoundaryDetector | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.srpp = srpp
        self.boundary = boundary
        self.segmentation = segmentation
        channels = segmentation.channels
        self.boundary_to_segmentation = nn.Conv2d(channels, channels, kernel_size=1) if boundary is not None else None
        if self.boundary_to_segmentation is not None:  # starts at zero: at step 0 the segmentation is SAM2's own
            nn.init.zeros_(self.boundary_to_segmentation.weight)
            nn.init.zeros_(self.boundary_to_segmentation.bias)  # type: ignore[arg-type]

    def forward(self, slices: Tensor) -> Prediction:
        """slices: (B, D, 1 to 3, H0, W0) in [0, 1]; the encoder brings them to H x W."""
        return self.decode(self.encoder(slices))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.segmentation.no_memory_embedding.device

    def decode(self, features: Features) -> Prediction:
        """The trained part, from the encoder's features of a window."""
        return self.decode_projected(self.project(features))

    def project(self, features: Features) -> DecoderFeatures:
        """The encoder's features as the decoders take them."""
        fine = self.segmentation.project(features)
        if self.boundary is None:
            return DecoderFeatures(features.z, *fine)
        return DecoderFeatures(features.z, *fine, *self.boundary.decoder.project(features))

    def decode_projected(self, features: DecoderFeatures) -> Prediction:
        """A window of D slices: the context that they give each other, then slice by slice."""
        context, relative_position = self.look_around(features.z)
        depth = context.shape[1]
        state = self.start(depth)
        steps = [self.step(state, features.at(i), context[:, i]) for i in range(depth)]
        masks, boundaries = zip(*steps, strict=True)
        return Prediction(
            segmentation=torch.stack(masks, dim=2),
            boundary=None if boundaries[0] is None else torch.stack(boundaries, dim=2),
            relative_position=relative_position,
        )

    def look_around(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The context that slices give each other, (B, D, C, h, w), and P_pos (B, D, D); z and None without SRPP."""
        if self.srpp is None:
            return z, None
        context, relative_position = self.srpp(z)
        return context, relative_position

    def start(self, num_slices: int) -> DecoderState:
        """Empty memories, for a pass of `num_slices` calls of `step`: a window, or a whole stack."""
        return DecoderState(MemoryBank(num_slices), MemoryBank(num_slices))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next slice of a pass, which `state` then remembers as far as later slices read it.

        features: of the slice, (B, C, ., .) each level; context: (B, C, h, w), its share of `look_around`.
        Returns: logits (B, K, 4h, 4w) of the masks, and of the boundaries or None.
        """
        z, boundary_logits = features.z, None
        z_seg = self.segmentation.attend(context, state.segmentation)
        if self.boundary is not None and self.boundary_to_segmentation is not None:
            assert features.boundary_stride8 is not None
            assert features.boundary_stride4 is not None
            found = self.boundary(context, z, features.boundary_stride8, features.boundary_stride4, state.boundary)
            z_seg = z_seg + self.boundary_to_segmentation(found.features)
            boundary_logits = found.logits
        logits, pointer = self.segmentation.decode(z_seg, features.stride8, features.stride4)
        if state.segmentation.will_be_read:
            state.segmentation.append(self.segmentation.remember(z, logits, pointer))
        return logits, boundary_logits
