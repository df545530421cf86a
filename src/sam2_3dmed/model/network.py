"""SAM2-3dMed, the whole network (paper 3, Figure 2): slices in, masks, boundaries and relative positions out."""

from typing import NamedTuple

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

    def decode(self, features: Features) -> Prediction:
        """The trained part, from the encoder's features of a window."""
        context, relative_position = (features.z, None) if self.srpp is None else self.srpp(features.z)
        depth = context.shape[1]
        fine = self.segmentation.project(features)
        fine_boundary = None if self.boundary is None else self.boundary.decoder.project(features)
        bank, boundary_bank = MemoryBank(depth), MemoryBank(depth)
        masks, boundaries = [], []
        for i in range(depth):
            z = features.z[:, i]
            z_seg = self.segmentation.attend(context[:, i], bank)
            if self.boundary is not None and self.boundary_to_segmentation is not None and fine_boundary is not None:
                found = self.boundary(
                    context[:, i], z, fine_boundary.stride8[:, i], fine_boundary.stride4[:, i], boundary_bank
                )
                z_seg = z_seg + self.boundary_to_segmentation(found.features)
                boundaries.append(found.logits)
            logits, pointer = self.segmentation.decode(z_seg, fine.stride8[:, i], fine.stride4[:, i])
            masks.append(logits)
            if bank.will_be_read:
                bank.append(self.segmentation.remember(z, logits, pointer))
        return Prediction(
            segmentation=torch.stack(masks, dim=2),
            boundary=torch.stack(boundaries, dim=2) if boundaries else None,
            relative_position=relative_position,
        )
