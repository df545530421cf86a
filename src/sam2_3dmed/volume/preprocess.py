"""What a volume goes through before the network, the same in training and in prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.volume.slices import SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume

_MAX_CHANNELS = 3


@dataclass(frozen=True)
class Normalisation:
    """How one channel's intensities are brought to [0, 1].

    kind: "fixed": `low` and `high` are intensities; "percentiles": percentiles (0 to 100) of the volume.
    Raises: ConfigError if low > high, or a bound is not finite, or a percentile is outside 0 to 100.
    """

    kind: Literal["fixed", "percentiles"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "percentiles"):
            raise ConfigError(f"normalisation must be fixed or percentiles, not {self.kind!r}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= self.high):
            raise ConfigError(f"normalisation needs low <= high, both finite, not {self.low} and {self.high}")
        if self.kind == "percentiles" and (self.low < 0 or self.high > 100):
            raise ConfigError(f"percentiles lie between 0 and 100, not {self.low} and {self.high}")

    def bounds(self, intensities: NDArray[Any]) -> tuple[float, float]:
        """The intensities that become 0 and 1, for a channel with these `intensities` (any shape)."""
        if self.kind == "fixed":
            return self.low, self.high
        return _percentiles(intensities, self.low, self.high)


@dataclass(frozen=True)
class Preprocessing:
    """From a volume to the slices the network sees, at their native size.

    normalisation: one per channel of the volume, 1 to 3.
    """

    slicing_axis: SlicingAxis
    normalisation: tuple[Normalisation, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.normalisation) <= _MAX_CHANNELS:
            raise ConfigError(f"a volume has 1 to 3 channels, not {len(self.normalisation)}")

    def slices(self, volume: Volume) -> NDArray[np.float32]:
        """The volume's slices in canonical RAS order, each channel clipped and scaled to [0, 1].

        A channel whose bounds coincide (a constant one) becomes zeros.
        Returns: (D, C, H, W) float32, with the volume's own C.
        Raises: VolumeError if the volume has another number of channels than this plan.
        """
        if volume.num_channels != len(self.normalisation):
            raise VolumeError(
                f"the volume has {_channels(volume.num_channels)}, the plan has {len(self.normalisation)}"
            )
        slices = volume_to_slices(volume, self.slicing_axis)
        if slices.ndim == 3:
            slices = slices[:, None]
        scaled = np.zeros(slices.shape, dtype=np.float32)
        for channel, normalisation in enumerate(self.normalisation):
            low, high = normalisation.bounds(slices[:, channel])
            if low < high:
                _scale(slices[:, channel], low, high, scaled[:, channel])
        return scaled


def choose_slicing_axis(spacings_mm: Sequence[tuple[float, float, float]]) -> SlicingAxis:
    """The slicing axis for a data set: axial, unless the cases are plainly thick-sliced along another axis.

    That is, unless another axis has the largest median spacing and the median over the cases of
    (largest / smallest spacing) exceeds 2.
    spacings_mm: for each case, along R, A and S.
    Raises: VolumeError without cases.
    """
    if not spacings_mm:
        raise VolumeError("a slicing axis cannot be chosen without a case")
    spacings = np.asarray(spacings_mm, dtype=np.float64)
    along_r, along_a, along_s = np.median(spacings, axis=0).tolist()
    anisotropy = float(np.median(spacings.max(axis=1) / spacings.min(axis=1)))
    if anisotropy <= 2 or along_s >= max(along_r, along_a):
        return "axial"
    return "sagittal" if along_r > along_a else "coronal"


def _channels(count: int) -> str:
    return f"{count} channel" if count == 1 else f"{count} channels"


def _percentiles(intensities: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Percentiles, interpolated linearly; NumPy's subtract in the array's dtype, where int16 overflows."""
    last = intensities.size - 1
    ranks = [low / 100 * last, high / 100 * last]
    below = [int(np.floor(rank)) for rank in ranks]
    above = [min(index + 1, last) for index in below]
    ordered = np.partition(intensities, sorted({*below, *above}), axis=None)
    first, second = (
        float(ordered[i]) + (rank - i) * (float(ordered[j]) - float(ordered[i]))
        for rank, i, j in zip(ranks, below, above, strict=True)
    )
    return first, second


def _scale(slices: NDArray[Any], low: float, high: float, out: NDArray[np.float32]) -> None:
    """Write (slices - low) / (high - low), clipped to [0, 1], to `out`; both (D, H, W)."""
    # Slice by slice: float64 keeps large integers apart, and only one slice of it exists at a time.
    for source, target in zip(slices, out, strict=True):
        target[...] = (np.clip(source.astype(np.float64), low, high) - low) / (high - low)
