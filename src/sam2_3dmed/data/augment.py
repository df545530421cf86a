"""The paper's augmentations (appendix B), with one draw for all slices of a slab (readings 5 and 12).

Everything in plane happens in one interpolation: the slab is flipped, which moves no value between pixels, and then
sampled through the affine map straight to the network's H x W.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.config import AugmentationConfig

_KNOTS = 5
"""Of an elastic deformation, along each side."""
_STRONG = {"noise": 0.8, "blur": 0.5, "intensity": 0.5}
"""UniMatch: Yang et al., CVPR 2023, which jitters colours by half and blurs half of the images."""


def resize(image: Tensor, size: int) -> Tensor:
    """(N, C, H0, W0) -> (N, C, size, size), bilinear, with antialiasing where it shrinks."""
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_labels(labels: Tensor, size: int) -> Tensor:
    """(N, H0, W0) of class indices -> (N, size, size), nearest."""
    resized = F.interpolate(labels.unsqueeze(1).float(), (size, size), mode="nearest-exact")
    return resized.squeeze(1).to(labels.dtype)


class Draw(NamedTuple):
    """One set of parameters, for all slices of a slab or of a whole case."""

    flip: bool
    affine: NDArray[np.float64] | None  # of `affine_matrix`; None leaves every pixel where it is
    elastic: NDArray[np.float32] | None  # (2, n, n): displacements at knots, x and y, as shares of the width
    gamma: float
    contrast: float
    noise_std: float  # 0 for none
    blur_sigma: float | None
    mosaic: bool


@dataclass(frozen=True)
class SlabAugmentation:
    """Draws one set of parameters and applies it to every slice of a slab."""

    config: AugmentationConfig
    size: int  # H = W in pixels after resizing

    def __call__(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augment a slab and bring it to the network's size.

        Args:
            image: (D, C, H0, W0) float32 in [0, 1].
            labels: (D, H0, W0) class indices.

        Returns:
            (D, C, size, size) float32, in [0, 1] before noise is added, and (D, size, size).
        """
        draw, noise = self.draw(rng, (*image.shape[:2], self.size, self.size))
        return self.image(draw, image, noise), self.labels(draw, labels)

    def views(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As a call, and the slab without the change of its intensities, in the same place: a weak view."""
        draw, noise = self.draw(rng, (*image.shape[:2], self.size, self.size))
        weak = self.image(draw._replace(gamma=1.0, contrast=1.0, blur_sigma=None), image, None)
        return self.image(draw, image, noise), self.labels(draw, labels), weak

    def draw(self, rng: np.random.Generator, noise_shape: tuple[int, ...] = (0,)) -> tuple[Draw, Tensor | None]:
        """Parameters, and standard normal noise of `noise_shape`; None where the draw has no noise."""
        c = self.config
        flip = bool(rng.random() < c.horizontal_flip)
        moved = rng.random() < c.affine
        angle, shear_x, shear_y = (
            math.radians(rng.uniform(-limit, limit)) for limit in (c.rotation_degrees, c.shear_degrees, 0.0)
        )
        affine = affine_matrix(angle, shear_x, shear_y, rng.uniform(1 - c.scale, 1 + c.scale))
        strength = rng.uniform(0, c.elastic) if c.elastic > 0 else 0.0
        elastic = strength * rng.standard_normal((2, _KNOTS, _KNOTS), dtype=np.float32) if strength > 0 else None
        gamma, contrast = rng.uniform(1 - c.intensity, 1 + c.intensity, size=2) if c.intensity > 0 else (1.0, 1.0)
        noise, noise_std = None, 0.0
        if rng.random() < c.noise:
            noise = torch.from_numpy(rng.standard_normal(noise_shape, dtype=np.float32))
            noise_std = rng.uniform(0, c.noise_std)
        blur_sigma = rng.uniform(*c.blur_sigma) if rng.random() < c.blur else None
        tiled = bool(rng.random() < c.mosaic)
        return Draw(flip, affine if moved else None, elastic, gamma, contrast, noise_std, blur_sigma, tiled), noise

    def image(self, draw: Draw, image: Tensor, noise: Tensor | None, middle: float | None = None) -> Tensor:
        """Slices (D, C, H0, W0) augmented with `draw`: (D, C, size, size).

        Args:
            noise: standard normal, of the result's shape.
            middle: the mean that contrast turns about; None: the mean of these slices.
        """
        image = self._move(draw, image)
        if self.config.intensity > 0:
            about = image.mean() if middle is None else middle
            image = ((image**draw.gamma - about) * draw.contrast + about).clamp(0, 1)
        if noise is not None:
            image = image + noise * draw.noise_std
        if draw.blur_sigma is not None:
            image = gaussian_blur(image, draw.blur_sigma)
        return mosaic(image) if draw.mosaic else image

    def labels(self, draw: Draw, labels: Tensor) -> Tensor:
        """Class indices (D, H0, W0) augmented with `draw`: (D, size, size)."""
        moved = labels.flip(-1) if draw.flip else labels
        grid = self._grid(draw, labels)
        if grid is None:
            moved = resize_labels(moved, self.size)
        else:
            planes = F.grid_sample(moved.unsqueeze(0).float(), grid, mode="nearest", align_corners=False)
            moved = planes.squeeze(0).to(labels.dtype)
        return mosaic(moved.unsqueeze(1)).squeeze(1) if draw.mosaic else moved

    def _move(self, draw: Draw, image: Tensor) -> Tensor:
        if draw.flip:
            image = image.flip(-1)
        grid = self._grid(draw, image)
        if grid is None:
            return resize(image, self.size)
        if max(image.shape[-2:]) > self.size:  # shrink with antialiasing first; the grid is in relative coordinates
            image = resize(image, self.size)
        # all slices and channels as channels of one picture: one grid, one pass
        planes = F.grid_sample(image.flatten(0, 1).unsqueeze(0), grid, mode="bilinear", align_corners=False)
        return planes.view(*image.shape[:2], self.size, self.size)

    def _grid(self, draw: Draw, planes: Tensor) -> Tensor | None:
        """Where each pixel of the result comes from, see `sampling_grid`; None if every pixel stays where it is."""
        if draw.affine is None and draw.elastic is None:
            return None
        matrix = np.eye(2) if draw.affine is None else draw.affine
        height, width = planes.shape[-2:]
        grid = sampling_grid(matrix, height, width, self.size)
        if draw.elastic is not None:
            knots = torch.from_numpy(draw.elastic).unsqueeze(0)
            shift = F.interpolate(knots, (self.size, self.size), mode="bicubic", align_corners=True)
            grid = grid + 2 * shift.permute(0, 2, 3, 1)  # a width is 2 in relative coordinates
        return grid.to(planes.device)


def strong(augmentation: SlabAugmentation) -> SlabAugmentation:
    """The same with stronger changes of intensity, for slabs that a network labels for itself (as in UniMatch)."""
    config = augmentation.config
    stronger = {name: max(least, getattr(config, name)) for name, least in _STRONG.items()}
    return replace(augmentation, config=config.model_copy(update=stronger))


def affine_matrix(angle: float, shear_x: float, shear_y: float, zoom: float) -> NDArray[np.float64]:
    """(2, 2) map from output to input offsets (x, y): rotation and shears in radians, then the zoom."""
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, math.tan(shear_x)], [math.tan(shear_y), 1.0]])
    return np.linalg.inv(zoom * rotation @ shear)


def sampling_grid(matrix: NDArray[np.float64], height: int, width: int, size: int) -> Tensor:
    """The grid (1, size, size, 2) that samples an image of height x width pixels through a map about its centre.

    The map acts in pixels of equal size, so a rotation stays one in an image that is not square.
    """
    to_relative = np.diag([2 / width, 2 / height])
    relative = to_relative @ matrix @ np.linalg.inv(to_relative)
    theta = torch.from_numpy(np.column_stack([relative, np.zeros(2)]).astype(np.float32)).unsqueeze(0)
    return F.affine_grid(theta, [1, 1, size, size], align_corners=False)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(D, C, H, W) blurred in plane with a Gaussian of `sigma` pixels, cut at 4 sigma, mirrored at the edges."""
    # As two products of matrices, which take a fifth of the time of convolutions of a single channel.
    rows, columns = (_blur_matrix(side, sigma).to(image.device) for side in image.shape[-2:])
    return rows.T @ image @ columns


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """(side, side): how much each pixel of a line counts in each pixel of the blurred line."""
    radius = max(1, min(math.ceil(4 * sigma), side - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    mirrored = F.pad(torch.eye(side).unsqueeze(0), (radius, radius), mode="reflect").squeeze(0)
    return mirrored.unfold(1, len(kernel), 1) @ (kernel / kernel.sum())


def mosaic(image: Tensor) -> Tensor:
    """(D, C, H, W) -> the same shape: each slice at half size, tiled 2 x 2 (reading 12)."""
    half = image[..., ::2, ::2]
    rows = torch.cat([half, half], dim=-1)[..., : image.shape[-1]]
    return torch.cat([rows, rows], dim=-2)[..., : image.shape[-2], :]
