"""From a volume to the slices that the network takes, the same in training and in prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.percentiles import percentiles
from sam2_3dmed.volume.slices import SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume

_SMALL = 2  # bytes


@dataclass(frozen=True)
class Normalisation:
    """How one channel's intensities are brought to [0, 1].

    `low` becomes 0 and `high` becomes 1. They are intensities (fixed), or percentiles (0 to 100) of each volume.
    """

    kind: Literal["fixed", "percentiles"]
    low: float
    high: float

    def bounds(self, intensities: NDArray[Any]) -> tuple[float, float]:
        """The intensities that become 0 and 1, for a channel with these `intensities` (any shape)."""
        if self.kind == "fixed":
            return self.low, self.high
        return percentiles(intensities, self.low, self.high)


@dataclass(frozen=True)
class Preprocessing:
    """From a volume to slices at their native size. `normalisation`: one for each of the 1 to 3 channels."""

    slicing_axis: SlicingAxis
    normalisation: tuple[Normalisation, ...]

    def stack(self, volume: Volume) -> "SliceStack":
        """The volume's slices in canonical RAS order, each channel clipped and scaled to [0, 1] on demand.

        A constant channel becomes zeros. Raises VolumeError if the volume has another number of channels than the plan.
        """
        if volume.num_channels != len(self.normalisation):
            raise VolumeError(
                f"the volume has {volume.num_channels} channel{'s' if volume.num_channels > 1 else ''}, "
                f"the plan has {len(self.normalisation)}"
            )
        slices = volume_to_slices(volume, self.slicing_axis)
        if slices.ndim == 3:
            slices = slices[:, None]
        bounds = [one.bounds(slices[:, channel]) for channel, one in enumerate(self.normalisation)]
        return SliceStack(slices, bounds)

    def slices(self, volume: Volume) -> NDArray[np.float32]:
        """All of `stack` at once: (D, C, H, W) float32, with the volume's own C."""
        return self.stack(volume)[:]


class SliceStack:
    """Slices (D, C, H, W) float32 in [0, 1] that are made on demand: `stack[a:b]` is an array.

    Args:
        voxels: (D, C, H, W) as they are stored, a view.
        bounds: for each channel, the intensities that become 0 and 1.
    """

    def __init__(self, voxels: NDArray[Any], bounds: Sequence[tuple[float, float]]) -> None:
        self._voxels = voxels
        self._scales = [_scale(voxels.dtype, low, high) for low, high in bounds]

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, C, H, W)."""
        return self._voxels.shape

    def __len__(self) -> int:
        return len(self._voxels)

    def __getitem__(self, which: slice) -> NDArray[np.float32]:
        """Some of the slices, (n, C, H, W); a new array."""
        voxels = self._voxels[which]
        scaled = np.empty(voxels.shape, dtype=np.float32)
        for sources, targets in zip(voxels, scaled, strict=True):
            for scale, source, target in zip(self._scales, sources, targets, strict=True):
                scale(source, target)
        return scaled


def _scale(dtype: np.dtype[Any], low: float, high: float) -> Callable[[NDArray[Any], NDArray[np.float32]], None]:
    """A function that writes (values - low) / (high - low), clipped to [0, 1], of one array to another.

    In float64, which keeps large integers apart; zeros where low is high.
    """

    def compute(source: NDArray[Any], target: NDArray[np.float32]) -> None:
        wide = np.clip(source, low, high, dtype=np.float64)
        wide -= low
        np.divide(wide, high - low if low < high else np.inf, out=target, casting="same_kind")

    if dtype.kind not in "iu" or dtype.itemsize > _SMALL or not dtype.isnative:
        return compute
    # All results fit a table, since there are so few values: twice as fast, and the same to the last bit.
    unsigned = np.dtype(f"u{dtype.itemsize}")
    table = np.empty(1 << (8 * dtype.itemsize), dtype=np.float32)
    compute(np.arange(len(table)).astype(unsigned).view(dtype), table)

    def look_up(source: NDArray[Any], target: NDArray[np.float32]) -> None:
        np.take(table, source.view(unsigned), out=target, mode="wrap")  # "raise" would buffer the output

    return look_up
