"""The best intensity threshold, as a baseline that a trained network has to beat."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.volume.volume import Volume

Pair = tuple[Volume, Volume]
"""An image of one channel and its label, on one grid."""


@dataclass(frozen=True)
class Interval:
    """Intensities low..high, both included, after Gaussian smoothing of sigma in-plane voxels (0: none)."""

    low: float
    high: float
    sigma: float

    def mask(self, image: Volume) -> NDArray[np.bool_]:
        """The voxels (X, Y, Z) whose intensity lies in the interval."""
        smooth = _smooth(image, self.sigma)
        return (smooth >= self.low) & (smooth <= self.high)


@dataclass(frozen=True)
class ThresholdScore:
    """By class, the best interval on the training cases and its mean Dice over the test cases; and the mean of all."""

    intervals: dict[int, Interval]
    dice: dict[int, float]
    mean: float


def best_threshold_dice(
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    classes: Iterable[int],
    sigmas: Sequence[float] = (0.0, 1.0, 2.0),
    num_percentiles: int = 41,
) -> ThresholdScore:
    """For each class alone the intensity interval of the highest mean Dice on `train`, scored on `test`.

    Args:
        sigmas: smoothing tried before thresholding, in voxels of the finest spacing, equal in mm along all axes.
        num_percentiles: how many bounds are tried, each with each: percentiles of the class's training voxels.

    Raises DataError if there are no cases, or a class occurs in no training case.
    """
    if not train or not test:
        raise DataError("the best threshold needs at least one training case and one test case")
    best = {value: (-1.0, Interval(0, 0, 0)) for value in classes}
    for sigma in sigmas:
        smoothed = [(_smooth(image, sigma), label.array) for image, label in train]
        for value, (score, _) in best.items():
            masks = [(image, label == value) for image, label in smoothed]
            found, low, high = _best_interval(masks, value, num_percentiles)
            if found > score:
                best[value] = (found, Interval(low, high, sigma))
    intervals = {value: interval for value, (_, interval) in best.items()}
    scores = {
        value: float(np.mean([dice(interval.mask(image), label.array == value) for image, label in test]))
        for value, interval in intervals.items()
    }
    return ThresholdScore(intervals, scores, float(np.mean(list(scores.values()))))


def _smooth(image: Volume, sigma: float) -> NDArray[np.float32]:
    sigmas = [sigma * min(image.spacing_mm) / spacing for spacing in image.spacing_mm]
    return np.asarray(gaussian_filter(image.array.astype(np.float32), sigmas))


def _best_interval(
    cases: list[tuple[NDArray[np.float32], NDArray[np.bool_]]], value: int, num_percentiles: int
) -> tuple[float, float, float]:
    """The (mean Dice, low, high) of the best pair of bounds."""
    target = np.concatenate([image[mask] for image, mask in cases])
    if target.size == 0:
        raise DataError(f"no training case holds a voxel of label {value}, so there is no threshold for it")
    bounds = np.unique(np.percentile(target, np.linspace(0, 100, num_percentiles)).astype(np.float32))
    total = np.zeros((len(bounds), len(bounds)))
    for image, mask in cases:
        selected, hit = _counts(image, bounds), _counts(image[mask], bounds)
        size = selected + mask.sum()
        total += np.where(size > 0, 2 * hit / np.maximum(size, 1), 1.0)
    # A pair whose upper bound is below the lower is no interval.
    mean = np.where(np.triu(np.ones_like(total, dtype=bool)), total / len(cases), -1)
    low, high = np.unravel_index(int(mean.argmax()), mean.shape)
    return float(mean[low, high]), float(bounds[low]), float(bounds[high])


def _counts(values: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values lie in bounds[i]..bounds[j], both included, at [i, j]."""
    order = np.sort(values, axis=None)
    below, up_to = np.searchsorted(order, bounds, side="left"), np.searchsorted(order, bounds, side="right")
    return np.asarray(up_to[None, :] - below[:, None], dtype=np.int64)
