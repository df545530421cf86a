"""The image encoder (paper 3.1): SAM2's Hiera and feature pyramid on every slice; the only file that calls them."""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RGB_FROM = {1: [0, 0, 0], 2: [0, 1, 0], 3: [0, 1, 2]}
"""Which of 1, 2 or 3 channels stand for red, green and blue (reading 9)."""


class Features(NamedTuple):
    """What the encoder makes of slices: three levels of (B, D, C, ., .)."""

    z: Tensor
    """(B, D, C, h, w), stride 16."""
    stride8: Tensor
    """(B, D, C, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C, 4h, 4w)."""


class ImageEncoder(nn.Module):
    """SAM2's image encoder over the slices of a window, each on its own. Paper: 3.1.

    It takes slices as the scanner's grid has them, so training and prediction cannot prepare them differently.
    `freeze` takes gradients away *and* holds eval mode, whatever `train()` says later.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vision_encoder: nn.Module, image_size: int) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.image_size = image_size
        self.frozen = False
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def freeze(self) -> Self:
        """Fix the weights and the mode for good."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, slices: Tensor) -> Features:
        """Encode every slice.

        slices: (B, D, 1 to 3, H0, W0) in [0, 1], of any size. Returns: the three feature levels.
        """
        return self.encode(self.prepare(slices))

    def prepare(self, slices: Tensor) -> Tensor:
        """(B, D, 1 to 3, H0, W0) in [0, 1] -> (B, D, 3, H, W) resized in plane, ImageNet's mean and std taken out."""
        planes = slices.flatten(0, 1)
        size = (self.image_size, self.image_size)
        if planes.shape[-2:] != size:
            planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
        rgb = planes[:, _RGB_FROM[planes.shape[1]]]
        return ((rgb - self.mean) / self.std).unflatten(0, slices.shape[:2])

    def encode(self, prepared: Tensor) -> Features:
        """The feature levels of prepared slices (B, D, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            levels = self.vision_encoder(prepared.flatten(0, 1)).fpn_hidden_states
        stride4, stride8, z = (level.unflatten(0, prepared.shape[:2]) for level in levels)
        return Features(z=z, stride8=stride8, stride4=stride4)
