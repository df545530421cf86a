"""The image encoder (paper 3.1): SAM2's Hiera and feature pyramid (hiera.py) on every slice."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_3dmed.encoders.hiera import VisionEncoder

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


class FPNLaterals(NamedTuple):
    """1 x 1 convolutions that follow the finer levels of `ImageEncoder.pre_fpn_features`; None where there is none."""

    stride8: nn.Conv2d | None
    stride4: nn.Conv2d | None


NO_LATERALS = FPNLaterals(None, None)


def resize(planes: Tensor, image_size: int) -> Tensor:
    """(N, C, H0, W0) -> (N, C, S, S), bilinear with antialiasing; planes of that size are left as they are."""
    size = (image_size, image_size)
    if planes.shape[-2:] == size:
        return planes
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)


class ImageEncoder(nn.Module):
    """SAM2's image encoder over the slices of a slab, each on its own. Paper: 3.1.

    It takes slices as the scanner's grid has them, so training and prediction cannot prepare them differently.
    `freeze` takes gradients away *and* holds eval mode, whatever `train()` says later; of all of it or of all but
    some parts (adapt.py).

    slices_at_once: how many slices of a batch go through together, which bounds memory; none: all. checkpointing: where
    it trains, keep the slices and features of each such lot only, and compute the rest again on the way back.
    """

    slices_at_once: int | None = None
    checkpointing = False
    mean: Tensor
    std: Tensor

    def __init__(self, vision_encoder: VisionEncoder, image_size: int) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.image_size = image_size
        self._trained: tuple[nn.Module, ...] = (vision_encoder,)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def frozen(self) -> bool:
        """Whether nothing of it trains, so that a slice's features never change."""
        return not self._trained

    def freeze(self, *, but: Sequence[nn.Module] = ()) -> Self:
        """Fix the weights and the mode for good, of all `but` some of its modules."""
        self._trained = tuple(but)
        self.requires_grad_(False)
        for part in self._trained:
            part.requires_grad_()
        return self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of what trains; what is frozen stays in eval mode."""
        super().train(False)
        for part in self._trained:
            part.train(mode)
        self.training = mode and not self.frozen
        return self

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
        planes = prepared.flatten(0, 1)
        lots = [planes] if self.slices_at_once is None else planes.split(self.slices_at_once)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            parts = [self._levels(lot) for lot in lots]
        levels = parts[0] if len(parts) == 1 else [torch.cat(level) for level in zip(*parts, strict=True)]
        stride4, stride8, z = (level.unflatten(0, prepared.shape[:2]) for level in levels)
        return Features(z=z, stride8=stride8, stride4=stride4)

    @torch.no_grad()
    def pre_fpn_features(self, slices: Tensor) -> Features:
        """The features of slices (B, D, 1 to 3, H0, W0) in fewer numbers, to be kept where they never change.

        The finer levels are those ahead of `laterals`: for tiny, 192 and 96 channels instead of 256. Whoever convolves
        them can take both convolutions in one.
        """
        levels = self.vision_encoder.pre_fpn_features(self.prepare(slices).flatten(0, 1))
        stride4, stride8, z = (level.unflatten(0, slices.shape[:2]) for level in levels)
        return Features(z=z, stride8=stride8, stride4=stride4)

    @property
    def pre_fpn_shapes(self) -> list[tuple[int, int, int]]:
        """(height, width, channels) of a slice's z, stride8 and stride4 from `pre_fpn_features`."""
        widths = [None, *self.laterals]
        sides = (self.image_size // stride for stride in (16, 8, 4))
        channels = self.vision_encoder.channels
        return [(s, s, channels if w is None else w.in_channels) for s, w in zip(sides, widths, strict=True)]

    @property
    def laterals(self) -> FPNLaterals:
        """What stands between the features of `pre_fpn_features` and those of `forward`."""
        return FPNLaterals(stride8=self.vision_encoder.lateral(1), stride4=self.vision_encoder.lateral(0))

    def _levels(self, planes: Tensor) -> list[Tensor]:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.vision_encoder, planes, use_reentrant=False)
        return self.vision_encoder(planes)
