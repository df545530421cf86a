"""Percentiles of more voxels than should be copied: exact, by counting, with a piece of them in hand at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 16
_PIECE = 1 << 18


def percentiles(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Two percentiles (0 to 100), interpolated linearly as NumPy does.

    values: any shape and memory order, bool, integers or floats without NaN; never copied or sorted as a whole.
    """
    last = values.size - 1
    ranks = [low / 100 * last, high / 100 * last]
    below = [int(np.floor(rank)) for rank in ranks]
    above = [min(index + 1, last) for index in below]
    found = values_at(values, [*below, *above])
    # In float64: the difference of two int16 may not fit int16.
    first, second = (
        a + (rank - index) * (b - a) for rank, index, a, b in zip(ranks, below, found[:2], found[2:], strict=True)
    )
    return first, second


def values_at(values: NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """The values that sorting would put at `ranks` (0 is the smallest).

    Every value has an integer key in the same order. Its first 16 bits are counted, then the next 16 bits of the keys
    that begin like the one wanted, and so on: one pass for 16-bit voxels, two for float32, four for float64.
    """
    bits = 8 * values.dtype.itemsize
    wanted = [(0, rank) for rank in ranks]  # the leading bits of the key, and the rank among the keys with these
    shift = bits
    while shift > 0:
        width = min(_DIGIT_BITS, shift)
        shift -= width
        counts = {prefix: np.zeros(1 << width, dtype=np.int64) for prefix, _ in wanted}
        for keys in map(_keys, _pieces(values)):
            leading = keys >> keys.dtype.type(shift)
            for prefix, count in counts.items():
                alike = leading if len(counts) == 1 and shift + width == bits else leading[leading >> width == prefix]
                count += np.bincount(alike & ((1 << width) - 1), minlength=len(count))
        wanted = [_next_digit(counts[prefix], prefix, rank, width) for prefix, rank in wanted]
    keys = np.array([prefix for prefix, _ in wanted], dtype=f"u{values.dtype.itemsize}")
    return [float(value) for value in _from_keys(keys, values.dtype)]


def _next_digit(count: NDArray[np.int64], prefix: int, rank: int, width: int) -> tuple[int, int]:
    cumulative = np.cumsum(count)
    digit = int(np.searchsorted(cumulative, rank, side="right"))
    return (prefix << width) | digit, rank - int(cumulative[digit] - count[digit])


def _pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All values in pieces of one axis, as they lie in memory."""
    ordered = values.transpose(np.argsort([-abs(stride) for stride in values.strides], kind="stable"))
    count = max(1, _PIECE * len(ordered) // ordered.size) if ordered.ndim else 1
    for start in range(0, len(ordered), count):
        yield ordered[start : start + count].ravel(order="K")


def _keys(piece: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values."""
    piece = piece.astype(piece.dtype.newbyteorder("="), copy=False)
    bits = np.dtype(f"u{piece.dtype.itemsize}")
    keys, sign = piece.view(bits), bits.type(1 << (8 * bits.itemsize - 1))
    if piece.dtype.kind == "i":
        keys = keys ^ sign
    if piece.dtype.kind == "f":  # the larger a negative number's bits, the smaller it is
        keys = np.where(keys & sign, ~keys, keys | sign)
    return keys


def _from_keys(keys: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    sign = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    native = dtype.newbyteorder("=")
    if dtype.kind == "i":
        keys = keys ^ sign
    if dtype.kind == "f":
        keys = np.where(keys & sign, keys ^ sign, ~keys)
    return keys.view(native)
