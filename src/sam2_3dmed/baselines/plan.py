"""The rules by which training cases decide on spacing, patch and intensities: nnU-Net's, in plain form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.baselines.grid import ANISOTROPIC, Grid, Spacing, Three, resampled_shape
from sam2_3dmed.baselines.recipe import Intensities, PatchConfig

_FEWEST_VOXELS = 4
"""Of an axis after halving."""


@dataclass(frozen=True)
class Outline:
    """The common grid and the median case on it, from which networks are planned. Axes are (D, H, W).

    Args:
        size: full or small.
        patch: the recipe's; none to choose one.
    """

    spacing_mm: Spacing
    median_shape: Three
    size: str
    num_channels: int
    num_classes: int
    patch: Three | None

    def choose_patch(self, multiples: Sequence[int], max_voxels: int) -> Three:
        """About a cube in mm, as large as allowed, but not larger than the median case; rounded up to multiples.

        At least two multiples along one axis: with a single voxel at its bottom, a network has nothing to normalise.
        """
        if self.patch is not None:
            return _rounded_up(self.patch, multiples)
        side_mm = max(size * spacing for size, spacing in zip(self.median_shape, self.spacing_mm, strict=True))
        while True:
            sizes = [max(1, round(side_mm / spacing)) for spacing in self.spacing_mm]
            sizes = [min(pair) for pair in zip(sizes, self.median_shape, strict=True)]
            patch = _rounded_up(sizes, multiples)
            # One multiple is the smallest patch, even if it is larger than allowed.
            if prod(patch) <= max_voxels or patch == tuple(multiples):
                break
            side_mm *= 0.97
        if patch == tuple(multiples):
            longest = int(np.argmax(self.median_shape))
            patch = _three(np.where(np.arange(3) == longest, 2, 1) * np.array(patch))
        return patch


def outline(
    config: PatchConfig, grids: Sequence[Grid], *, num_channels: int, num_classes: int, on_gpu: bool
) -> Outline:
    """The outline of the training cases."""
    spacing = config.model.spacing_mm or common_spacing(grids)
    shapes = [resampled_shape(grid.shape, grid.spacing_mm, spacing) for grid in grids]
    d, h, w = (int(value) for value in np.ceil(np.median(shapes, axis=0)))
    size = config.model.size if config.model.size != "auto" else "full" if on_gpu else "small"
    return Outline(spacing, (d, h, w), size, num_channels, num_classes, config.model.patch)


def common_spacing(grids: Sequence[Grid]) -> Spacing:
    """The median spacing; along an axis whose slices lie far apart the tenth percentile, but not finer than the others.

    This is nnU-Net's rule: with the median, half of the cases would lose slices.
    """
    spacings = np.array([grid.spacing_mm for grid in grids])
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    voxels = np.median([grid.shape for grid in grids], axis=0)
    if target[worst] > ANISOTROPIC * target[others].max() and ANISOTROPIC * voxels[worst] < voxels[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    d, h, w = (round(float(value), 6) for value in target)
    return d, h, w


def halvings(patch: Sequence[int], spacing_mm: Sequence[float], most: int = 5) -> tuple[list[Three], list[Three]]:
    """Strides of the levels of a U-Net below the first, and kernels of all levels, by nnU-Net's rule.

    Only axes of about the finest spacing are halved, and only if four voxels remain. An axis has kernels of 1 as long
    as its spacing is twice the finest or more. There are at least two levels below the first.
    """
    size, spacing = np.array(patch, dtype=float), np.array(spacing_mm)
    strides: list[Three] = []
    kernels: list[Three] = []
    smooth = np.zeros(3, dtype=bool)
    while len(strides) < most:
        smooth |= spacing < 2 * spacing.min()
        kernels.append(_three(np.where(smooth, 3, 1)))
        able = size >= 2 * _FEWEST_VOXELS
        if able.any():
            able &= spacing < 2 * spacing[able].min()
            if able.sum() == 1 and size[able][0] < 3 * _FEWEST_VOXELS:
                able[:] = False
        if not able.any():
            if len(strides) >= 2:
                return strides, kernels
            able = size == size.max()
        strides.append(_three(np.where(able, 2, 1)))
        size, spacing = np.where(able, size / 2, size), np.where(able, 2 * spacing, spacing)
    return strides, [*kernels, _three(np.where(smooth | (spacing < 2 * spacing.min()), 3, 1))]


def intensities(kinds: Sequence[str], cases: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> list[Intensities]:
    """Mean and standard deviation of each channel in all cases' foreground; for `percentiles`, each volume has its own.

    Args:
        kinds: how each channel is normalised, `fixed` (CT) or `percentiles`.
        cases: images (D, C, H, W) in [0, 1], and class indices (D, H, W).
    """
    if "fixed" not in kinds:
        return [Intensities() for _ in kinds]
    sums = np.zeros((3, len(kinds)))  # of ones, of values, of their squares
    for image, label in cases:
        values = np.moveaxis(image, 1, -1)[label > 0].astype(np.float64)
        sums += np.stack([np.full(len(kinds), len(values)), values.sum(axis=0), (values**2).sum(axis=0)])
    mean, square = sums[1:] / np.maximum(sums[0], 1)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return [
        Intensities(mean=float(m), std=float(s)) if kind == "fixed" else Intensities()
        for kind, m, s in zip(kinds, mean, std, strict=True)
    ]


def _rounded_up(sizes: Sequence[int], multiples: Sequence[int]) -> Three:
    d, h, w = (-(-size // multiple) * multiple for size, multiple in zip(sizes, multiples, strict=True))
    return d, h, w


def _three(values: NDArray[Any]) -> Three:
    d, h, w = (int(value) for value in values)
    return d, h, w
