"""The grid that patches are cut from: volumes on it, as nnU-Net resamples them. Axes are (D, H, W) everywhere.

Between slices that lie far apart nothing is interpolated smoothly.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Three = tuple[int, int, int]
Spacing = tuple[float, float, float]

ANISOTROPIC = 3.0
"""From this ratio of spacings on, slices lie far apart."""


class Grid(NamedTuple):
    """The grid of one case."""

    shape: Three
    spacing_mm: Spacing


def three(values: Sequence[int] | NDArray[Any]) -> Three:
    """Three numbers as integers."""
    d, h, w = (int(value) for value in values)
    return d, h, w


def common_spacing(grids: Sequence[Grid]) -> Spacing:
    """The median spacing; along an axis whose slices lie far apart the tenth percentile, but not finer than the others.

    This is nnU-Net's rule: with the median, half of the cases would lose slices.
    """
    spacings = np.array([grid.spacing_mm for grid in grids])
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    voxels = np.median([grid.shape for grid in grids], axis=0)
    coarsest = np.delete(target, worst).max()
    if target[worst] > ANISOTROPIC * coarsest and ANISOTROPIC * voxels[worst] < np.delete(voxels, worst).min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), coarsest)
    d, h, w = (round(float(value), 6) for value in target)
    return d, h, w


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Three:
    """How many voxels a volume has on another grid; at least one along each axis."""
    return three([max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True)])


def thick_axis(*spacings_mm: Sequence[float]) -> int | None:
    """The axis along which slices lie far apart, in the first of the grids that has one."""
    for spacing in spacings_mm:
        worst = int(np.argmax(spacing))
        if spacing[worst] > ANISOTROPIC * min(spacing):
            return worst
    return None


def resample_image(image: NDArray[np.float32], shape: Three, thick: int | None) -> NDArray[np.float32]:
    """(C, D, H, W) -> (C, *shape), by cubic splines; along a thick axis the nearest slice."""
    if image.shape[1:] == shape:
        return image
    return np.stack([_resample(channel, shape, thick, order=3) for channel in image])


def resample_labels(labels: NDArray[np.integer], highest: int, shape: Three, thick: int | None) -> NDArray[np.integer]:
    """(D, H, W) of values up to `highest` -> `shape`: the value with the largest share of a voxel, linearly."""
    dtype: np.dtype[Any] = np.min_scalar_type(highest)
    if labels.shape == shape:
        return labels.astype(dtype)
    resampled = np.zeros(shape, dtype=dtype)
    largest = _resample((labels == 0).astype(np.float32), shape, thick, order=1)
    for value in range(1, highest + 1):
        share = _resample((labels == value).astype(np.float32), shape, thick, order=1)
        wins = share > largest
        resampled[wins] = value
        largest[wins] = share[wins]
    return resampled


def _resample(array: NDArray[np.float32], shape: Three, thick: int | None, order: Literal[1, 3]) -> NDArray[np.float32]:
    from scipy.ndimage import zoom

    smooth = [n if axis == thick else size for axis, (n, size) in enumerate(zip(array.shape, shape, strict=True))]
    steps: tuple[tuple[Sequence[int], Literal[0, 1, 3]], ...] = ((smooth, order), (shape, 0))
    for target, how in steps:
        factors = [size / n for size, n in zip(target, array.shape, strict=True)]
        if any(factor != 1 for factor in factors):
            array = zoom(array, factors, order=how, mode="nearest", grid_mode=True)
    return array
