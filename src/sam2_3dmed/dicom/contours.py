"""Contours on a slice as pixels, and pixels as contours.

A pixel belongs to a region if its centre lies inside, by the even-odd rule. matplotlib and scikit-image give the same
pixels unless an outline runs through pixel centres: then they count a shared edge twice or depend on the direction of
the outline. They also take 150 times as long for a fine outline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""(n, 2): column and row of each corner, in pixels, 0 at the centre of the first; the last joins the first."""

_ROUNDING = 6  # decimals of a pixel, so that rounding errors of mm do not decide the side of a centre
_SAME_POINT = 2  # decimals of a pixel
_BESIDE_THE_CENTRES = 0.25  # of a row


def rasterise(polygons: Sequence[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels, (columns, rows), whose centres lie inside an odd number of polygons.

    A polygon in another is a hole. One that is there twice counts once.
    """
    columns, rows = size
    different = {np.unique(polygon.round(_SAME_POINT) + 0.0, axis=0).tobytes(): polygon for polygon in polygons}
    # Each edge that crosses the centre line of a row swaps inside and outside for all pixels to its right.
    swaps = np.zeros((rows, columns + 1), np.int32)
    for polygon in different.values():
        at_rows, at_columns = _crossings(np.round(polygon, _ROUNDING), rows)
        np.add.at(swaps, (at_rows, np.clip(np.ceil(at_columns), 0, columns).astype(np.int64)), 1)
    inside: NDArray[np.bool_] = np.cumsum(swaps[:, :columns], axis=1) % 2 == 1
    return inside.T


def trace(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Closed outlines of a mask (columns, rows), half-way between pixels inside and outside.

    Other programs fill each outline by itself. So a hole is joined to the outline around it by a cut of no width, there
    and back (a keyhole). `rasterise` gives the same mask back, and so does filling by winding numbers.
    """
    from contourpy import contour_generator

    padded = np.pad(mask.T, 1).astype(np.float64)
    outlines = [np.asarray(line, np.float64)[:-1] - 1 for line in contour_generator(z=padded).lines(0.5)]
    areas = [_signed_area(outline) for outline in outlines]
    outward = np.sign(max(areas, key=abs, default=0.0))
    loops = [outline for outline, area in zip(outlines, areas, strict=True) if area * outward > 0]
    holes = [outline for outline, area in zip(outlines, areas, strict=True) if area * outward < 0]
    # The first edge to the left of a hole is the outline around it, or another hole that is joined already.
    for hole in sorted(holes, key=lambda hole: float(hole[:, 0].min())):
        row = hole[hole[:, 0].argmin(), 1] + _BESIDE_THE_CENTRES
        edge, column = min(_edges_at(hole, row), key=lambda found: found[1])
        around, (joint, left) = max(
            (
                (number, found)
                for number, loop in enumerate(loops)
                for found in _edges_at(loop, row)
                if found[1] < column
            ),
            key=lambda item: item[1][1],
        )
        cut = np.array([[left, row], [column, row]])
        turned = np.roll(hole, -edge - 1, axis=0)
        loop = loops[around]
        loops[around] = np.vstack([loop[: joint + 1], cut, turned, cut[::-1], loop[joint + 1 :]])
    return loops


def _signed_area(polygon: Polygon) -> float:
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _edges_at(polygon: Polygon, row: float) -> list[tuple[int, float]]:
    """The edges that cross a row between the centres of pixels, each with the column where it does."""
    y, next_y = polygon[:, 1], np.roll(polygon[:, 1], -1)
    edges = np.flatnonzero((np.minimum(y, next_y) <= row) & (row < np.maximum(y, next_y)))
    x, next_x = polygon[edges, 0], np.roll(polygon[:, 0], -1)[edges]
    columns = x + (row - y[edges]) / (next_y - y)[edges] * (next_x - x)
    return list(zip(edges.tolist(), columns.tolist(), strict=True))


def _crossings(polygon: Polygon, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row and column of every crossing of an edge with the centre line of a row.

    An edge owns its upper end and not its lower one, so a corner on a centre line counts once or twice as it must. An
    edge gives the same numbers in both directions, so that a keyhole's cut leaves no trace.
    """
    ends = np.stack([polygon, np.roll(polygon, -1, axis=0)])
    downwards = ends[0, :, 1] > ends[1, :, 1]
    (x, y), (next_x, next_y) = np.where(downwards[:, None], ends[::-1], ends).transpose(0, 2, 1)
    first = np.clip(np.ceil(y), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(next_y), 0, rows).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = (row - y[edge]) / (next_y - y)[edge]
    return row, np.round(x[edge] + along * (next_x - x)[edge], _ROUNDING)
