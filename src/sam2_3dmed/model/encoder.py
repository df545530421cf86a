"""The image encoder (paper 3.1): SAM2's Hiera and feature pyramid (hiera.py) on every slice."""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RGB_FROM = {2: [0, 1, 0], 3: [0, 1, 2]}
"""Which of 2 or 3 channels stand for red, green and blue; one stands for all (reading 9)."""


class Features(NamedTuple):
    """What the encoder makes of slices: three levels of (B, D, C, ., .)."""

    z: Tensor
    """(B, D, C, h, w), stride 16."""
    stride8: Tensor
    """(B, D, C, 2h, 2w)."""
    stride4: Tensor
    """(B, D, C, 4h, 4w)."""


def resize(planes: Tensor, image_size: int) -> Tensor:
    """(N, C, H0, W0) -> (N, C, S, S), bilinear with antialiasing; planes of that size are left as they are."""
    size = (image_size, image_size)
    if planes.shape[-2:] == size:
        return planes
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)


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
        planes = resize(slices.flatten(0, 1), self.image_size)
        return self.standardise(planes).unflatten(0, slices.shape[:2])

    def standardise(self, planes: Tensor) -> Tensor:
        """(N, 1 to 3, H, W) in [0, 1] -> (N, 3, H, W), ImageNet's mean and std taken out."""
        channels = int(planes.shape[1])  # while it is traced for ONNX, the shape is a tensor
        rgb = planes if channels == 1 else planes[:, _RGB_FROM[channels]]  # one channel becomes three in the difference
        return (rgb - self.mean).div_(self.std)

    def encode(self, prepared: Tensor) -> Features:
        """The feature levels of prepared slices (B, D, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            levels = self.vision_encoder(prepared.flatten(0, 1))
        stride4, stride8, z = (level.unflatten(0, prepared.shape[:2]) for level in levels)
        return Features(z=z, stride8=stride8, stride4=stride4)
