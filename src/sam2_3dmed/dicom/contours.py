"""Outlines to pixels and back: a pixel belongs to a region if its centre lies inside, by the even-odd rule."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""(n, 2): column and row of each corner, in pixels, 0 at the centre of the first; the last joins the first."""

_ROUNDING = 6  # decimals of a pixel: what the way from mm leaves must not decide on which side a centre lies


def rasterise(polygons: Sequence[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside an odd number of polygons, so that a polygon in another one is a hole.

    size: (columns, rows). Returns: (columns, rows) bool.
    """
    columns, rows = size
    # Each edge that crosses a row's centre line turns inside and outside about for all pixels to its right.
    turns = np.zeros((rows, columns + 1), np.int32)
    for polygon in polygons:
        at_rows, at_columns = _crossings(np.round(polygon, _ROUNDING), rows)
        np.add.at(turns, (at_rows, np.clip(np.ceil(at_columns), 0, columns).astype(np.int64)), 1)
    inside: NDArray[np.bool_] = np.cumsum(turns[:, :columns], axis=1) % 2 == 1
    return inside.T


def trace(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Closed outlines half-way between the pixels inside and those outside: `rasterise` gives the same mask back.

    mask: (columns, rows). Holes have outlines of their own.
    """
    from contourpy import contour_generator

    padded = np.pad(mask.T, 1).astype(np.float64)
    lines = contour_generator(z=padded).lines(0.5)
    return [np.asarray(line, np.float64)[:-1] - 1 for line in lines]


def _crossings(polygon: Polygon, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row and column of every crossing of an edge with the centre line of a row.

    An edge owns its upper end and not its lower one, so a corner on a centre line counts once or twice as it must.
    """
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y, next_y)), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, next_y)), 0, rows).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = (row - y[edge]) / (next_y - y)[edge]
    return row, np.round(x[edge] + along * (next_x - x)[edge], _ROUNDING)
