"""What a volume goes through before the network, the same in training and in prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.volume.percentiles import percentiles
from sam2_3dmed.volume.slices import SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume

_MAX_CHANNELS = 3
_SMALL = 2  # bytes


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
        return percentiles(intensities, self.low, self.high)


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

    def stack(self, volume: Volume) -> "SliceStack":
        """The volume's slices in canonical RAS order, each channel clipped and scaled to [0, 1] when asked for.

        A channel whose bounds coincide (a constant one) becomes zeros.
        Raises: VolumeError if the volume has another number of channels than this plan.
        """
        if volume.num_channels != len(self.normalisation):
            raise VolumeError(
                f"the volume has {_channels(volume.num_channels)}, the plan has {len(self.normalisation)}"
            )
        slices = volume_to_slices(volume, self.slicing_axis)
        if slices.ndim == 3:
            slices = slices[:, None]
        bounds = [one.bounds(slices[:, channel]) for channel, one in enumerate(self.normalisation)]
        return SliceStack(slices, bounds)

    def slices(self, volume: Volume) -> NDArray[np.float32]:
        """All of `stack` at once.

        Returns: (D, C, H, W) float32, with the volume's own C.
        Raises: VolumeError as `stack`.
        """
        return self.stack(volume)[:]


class SliceStack:
    """Slices (D, C, H, W) float32 in [0, 1] that are made on demand: `stack[a:b]` is an array.

    voxels: (D, C, H, W) as they are stored, a view; bounds: for each channel, what becomes 0 and 1.
    """

    def __init__(self, voxels: NDArray[Any], bounds: Sequence[tuple[float, float]]) -> None:
        self._voxels = voxels
        self._scales = [_scale(voxels.dtype, low, high) for low, high in bounds]

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, C, H, W)."""
        return self._voxels.shape

    def __len__(self) -> int:
        """D, the number of slices."""
        return len(self._voxels)

    def __getitem__(self, which: slice) -> NDArray[np.float32]:
        """Some of the slices, (n, C, H, W); a new array."""
        voxels = self._voxels[which]
        scaled = np.empty(voxels.shape, dtype=np.float32)
        for sources, targets in zip(voxels, scaled, strict=True):
            for scale, source, target in zip(self._scales, sources, targets, strict=True):
                scale(source, target)
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
    # So few values that all results fit a table: twice as fast, and the same to the last bit.
    unsigned = np.dtype(f"u{dtype.itemsize}")
    table = np.empty(1 << (8 * dtype.itemsize), dtype=np.float32)
    compute(np.arange(len(table)).astype(unsigned).view(dtype), table)

    def look_up(source: NDArray[Any], target: NDArray[np.float32]) -> None:
        np.take(table, source.view(unsigned), out=target, mode="wrap")  # "raise" would buffer the output

    return look_up
