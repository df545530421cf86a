"""Exact percentiles by counting, without the copy that `np.percentile` makes of a volume."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 16
_PIECE = 1 << 18


def percentiles(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Two percentiles (0 to 100) of bool, integers, or floats without NaN, interpolated linearly as NumPy does."""
    last = values.size - 1
    ranks = np.array([low / 100 * last, high / 100 * last])
    below = np.floor(ranks).astype(int)
    a, b = np.reshape(values_at(values, [*below, *np.minimum(below + 1, last)]), (2, 2))
    first, second = (a + (ranks - below) * (b - a)).tolist()
    return first, second


def values_at(values: NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """The values that sorting would put at `ranks` (0 is the smallest).

    Every value has an integer key in the same order. One pass counts the first 16 bits of the keys. The next counts
    16 more bits of the keys that begin like the wanted one, and so on: one pass for 16-bit voxels, two for float32,
    four for float64.
    """
    native = values.dtype.newbyteorder("=")
    bits = shift = 8 * native.itemsize
    wanted = [(0, rank) for rank in ranks]  # the leading bits of the key, and the rank among the keys with these
    while shift > 0:
        width = min(_DIGIT_BITS, shift)
        shift -= width
        counts = {prefix: np.zeros(1 << width, dtype=np.int64) for prefix, _ in wanted}
        pieces = np.nditer(
            values, ["external_loop", "buffered"], order="K", op_dtypes=[native], casting="equiv", buffersize=_PIECE
        )
        for piece in pieces:
            leading = _keys(np.asarray(piece)) >> shift
            for prefix, count in counts.items():
                alike = leading if shift + width == bits else leading[leading >> width == prefix]
                count += np.bincount(alike & ((1 << width) - 1), minlength=len(count))
        for place, (prefix, rank) in enumerate(wanted):
            cumulative = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(cumulative, rank, side="right"))
            wanted[place] = (prefix << width) | digit, rank - int(cumulative[digit] - counts[prefix][digit])
    keys = np.array([prefix for prefix, _ in wanted], dtype=f"u{native.itemsize}")
    return [float(value) for value in _values(keys, native)]


def _keys(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values."""
    keys = values.view(f"u{values.dtype.itemsize}")
    sign = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    if values.dtype.kind == "i":
        keys = keys ^ sign
    if values.dtype.kind == "f":  # the larger a negative number's bits, the smaller it is
        keys = np.where(keys & sign, ~keys, keys | sign)
    return keys


def _values(keys: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inverse of `_keys`."""
    sign = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    if dtype.kind == "i":
        keys = keys ^ sign
    if dtype.kind == "f":
        keys = np.where(keys & sign, keys ^ sign, ~keys)
    return keys.view(dtype)
