"""The image encoder of the network (paper 3.1): everything around an `Encoder` that all encoders share."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_3dmed.encoders.registry import Encoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RGB_FROM = {2: [0, 1, 0], 3: [0, 1, 2]}
"""Which of 2 or 3 channels stand for red, green and blue. A single channel stands for all three (reading 9)."""


class Features(NamedTuple):
    """The three feature levels of slices."""

    z: Tensor  # (B, D, C, h, w), stride 16
    stride8: Tensor  # (B, D, C, 2h, 2w)
    stride4: Tensor  # (B, D, C, 4h, 4w)


def resize(planes: Tensor, image_size: int) -> Tensor:
    """(N, C, H0, W0) -> (N, C, S, S), bilinear with antialiasing. Planes of that size come back unchanged."""
    size = (image_size, image_size)
    if planes.shape[-2:] == size:
        return planes
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)


class ImageEncoder(nn.Module):
    """Encodes each slice of a slab by itself, from the scanner's grid to feature levels. Paper: 3.1."""

    slices_at_once: int | None = None
    """How many slices pass through the encoder together, which bounds memory; None: all."""
    activation_checkpointing = False
    """In training, keep only the slices and features of each such lot, and compute the rest again going backward."""
    mean: Tensor
    std: Tensor

    def __init__(self, vision_encoder: Encoder, image_size: int) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.image_size = image_size
        self._trained: tuple[nn.Module, ...] = (vision_encoder,)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def frozen(self) -> bool:
        """Whether no part trains, so that the features of a slice never change."""
        return not self._trained

    def freeze(self, *, but: Sequence[nn.Module] = ()) -> Self:
        """Take gradients away from all modules `but` some, and hold them in eval mode, also after `train()`."""
        self._trained = tuple(but)
        self.requires_grad_(False)
        for part in self._trained:
            part.requires_grad_()
        return self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of the parts that train. Frozen parts stay in eval mode."""
        super().train(False)
        for part in self._trained:
            part.train(mode)
        self.training = mode and not self.frozen
        return self

    def forward(self, slices: Tensor) -> Features:
        """Encode every slice; slices: (B, D, 1 to 3, H0, W0) in [0, 1], of any size in plane."""
        return self.encode(self.prepare(slices))

    def prepare(self, slices: Tensor) -> Tensor:
        """(B, D, 1 to 3, H0, W0) in [0, 1] -> (B, D, 3, H, W), resized in plane and standardised."""
        planes = resize(slices.flatten(0, 1), self.image_size)
        return self.standardise(planes).unflatten(0, slices.shape[:2])

    def standardise(self, planes: Tensor) -> Tensor:
        """(N, 1 to 3, H, W) in [0, 1] -> (N, 3, H, W), less ImageNet's mean, divided by its standard deviation."""
        channels = int(planes.shape[1])  # a tensor while ONNX traces
        rgb = planes if channels == 1 else planes[:, _RGB_FROM[channels]]  # a single channel is broadcast
        return (rgb - self.mean).div_(self.std)

    def encode(self, prepared: Tensor) -> Features:
        """The features of prepared slices (B, D, 3, H, W)."""
        planes = prepared.flatten(0, 1)
        lots = [planes] if self.slices_at_once is None else planes.split(self.slices_at_once)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            parts = [self._levels(lot) for lot in lots]
        levels = parts[0] if len(parts) == 1 else [torch.cat(level) for level in zip(*parts, strict=True)]
        return _features(levels, prepared.shape[:2])

    @torch.no_grad()
    def pre_fpn_features(self, slices: Tensor) -> Features:
        """The features of `forward` before `laterals`: fewer numbers to keep where they never change.

        For tiny, the finer levels have 192 and 96 channels here instead of 256.
        """
        levels = self.vision_encoder.pre_fpn_features(self.prepare(slices).flatten(0, 1))
        return _features(levels, slices.shape[:2])

    @property
    def pre_fpn_shapes(self) -> list[tuple[int, int, int]]:
        """(height, width, channels) of z, stride8 and stride4 of one slice from `pre_fpn_features`."""
        shapes = []
        for stride, lateral in zip((16, 8, 4), (None, *self.laterals), strict=True):
            side = self.image_size // stride
            shapes.append((side, side, self.vision_encoder.channels if lateral is None else lateral.in_channels))
        return shapes

    @property
    def laterals(self) -> tuple[nn.Conv2d | None, nn.Conv2d | None]:
        """The 1 x 1 convolutions from `pre_fpn_features` to stride 8 and stride 4; None where there is none."""
        return self.vision_encoder.lateral(1), self.vision_encoder.lateral(0)

    def _levels(self, planes: Tensor) -> list[Tensor]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.vision_encoder, planes, use_reentrant=False)
        return self.vision_encoder(planes)


def _features(levels: Sequence[Tensor], batch: torch.Size) -> Features:
    """Levels (B D, C, ., .), finest first, as features (B, D, C, ., .)."""
    return Features(*(level.unflatten(0, batch) for level in reversed(levels)))
