"""The paper's augmentations (appendix B), with one draw for all slices of a window (readings 5 and 12).

Everything in plane happens in one interpolation: the window is flipped, which moves no value between pixels, and then
sampled through the affine map straight to the network's H x W.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.config import AugmentationConfig


def resize(image: Tensor, size: int) -> Tensor:
    """(N, C, H0, W0) -> (N, C, size, size), bilinear, with antialiasing where it shrinks."""
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_labels(labels: Tensor, size: int) -> Tensor:
    """(N, H0, W0) of class indices -> (N, size, size), nearest."""
    resized = F.interpolate(labels.unsqueeze(1).float(), (size, size), mode="nearest-exact")
    return resized.squeeze(1).to(labels.dtype)


@dataclass(frozen=True)
class WindowAugmentation:
    """Draws one set of parameters and applies it to every slice of a window."""

    config: AugmentationConfig
    size: int
    """H = W in pixels after resizing."""

    def __call__(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augment a window and bring it to the network's size.

        image: (D, C, H0, W0) float32 in [0, 1]; labels: (D, H0, W0) class indices.
        Returns: (D, C, size, size) float32, in [0, 1] but for the noise, and (D, size, size).
        """
        image, labels = self._geometry(image, labels, rng)
        image = self._appearance(image, rng)
        if rng.random() < self.config.mosaic:
            image, labels = mosaic(image), mosaic(labels.unsqueeze(1)).squeeze(1)
        return image, labels

    def _geometry(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        c = self.config
        flip = rng.random() < c.horizontal_flip
        moved = rng.random() < c.affine
        angle, shear_x, shear_y = (
            math.radians(rng.uniform(-limit, limit)) for limit in (c.rotation_degrees, c.shear_degrees, 0.0)
        )
        zoom = rng.uniform(1 - c.scale, 1 + c.scale)
        if flip:
            image, labels = image.flip(-1), labels.flip(-1)
        if not moved:
            return resize(image, self.size), resize_labels(labels, self.size)
        height, width = image.shape[-2:]
        grid = sampling_grid(affine_matrix(angle, shear_x, shear_y, zoom), height, width, self.size)
        if max(height, width) > self.size:  # shrink with antialiasing first; the grid is in relative coordinates
            image = resize(image, self.size)
        # all slices and channels as channels of one picture: one grid, one pass
        planes = F.grid_sample(image.flatten(0, 1).unsqueeze(0), grid, mode="bilinear", align_corners=False)
        label_planes = F.grid_sample(labels.unsqueeze(0).float(), grid, mode="nearest", align_corners=False)
        return planes.view(*image.shape[:2], self.size, self.size), label_planes.squeeze(0).to(labels.dtype)

    def _appearance(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        c = self.config
        if c.intensity > 0:
            gamma, contrast = rng.uniform(1 - c.intensity, 1 + c.intensity, size=2)
            middle = image.mean()
            image = ((image**gamma - middle) * contrast + middle).clamp(0, 1)
        if rng.random() < c.noise:
            noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
            image = image + noise * rng.uniform(0, c.noise_std)
        if rng.random() < c.blur:
            image = gaussian_blur(image, rng.uniform(*c.blur_sigma))
        return image


def affine_matrix(angle: float, shear_x: float, shear_y: float, zoom: float) -> np.ndarray:
    """(2, 2) map from output to input offsets (x, y): rotation and shears in radians, then the zoom."""
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, math.tan(shear_x)], [math.tan(shear_y), 1.0]])
    return np.linalg.inv(zoom * rotation @ shear)


def sampling_grid(matrix: np.ndarray, height: int, width: int, size: int) -> Tensor:
    """The grid (1, size, size, 2) that samples an image of height x width pixels through a map about its centre.

    The map acts in pixels of equal size, so a rotation stays one in an image that is not square.
    """
    to_relative = np.diag([2 / width, 2 / height])
    relative = to_relative @ matrix @ np.linalg.inv(to_relative)
    theta = torch.from_numpy(np.column_stack([relative, np.zeros(2)]).astype(np.float32)).unsqueeze(0)
    return F.affine_grid(theta, [1, 1, size, size], align_corners=False)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(D, C, H, W) blurred in plane with a separable Gaussian of `sigma` pixels, cut at 4 sigma."""
    radius = max(1, min(math.ceil(4 * sigma), min(image.shape[-2:]) - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = image.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="reflect"), kernel)
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="reflect"), kernel.transpose(-1, -2))
    return planes.squeeze(1).view_as(image)


def mosaic(image: Tensor) -> Tensor:
    """(D, C, H, W) -> the same shape: each slice at half size, tiled 2 x 2 (reading 12)."""
    half = image[..., ::2, ::2]
    rows = torch.cat([half, half], dim=-1)[..., : image.shape[-1]]
    return torch.cat([rows, rows], dim=-2)[..., : image.shape[-2], :]
