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
    holes = [number for number, area in enumerate(areas) if area * outward < 0]
    return _keyholes(outlines, holes) if holes else outlines


def _keyholes(outlines: list[Polygon], holes: list[int]) -> list[Polygon]:
    """The outlines that are no holes, with a way into each hole and around it. It leaves from the edge to its left."""
    crossings = _crossings_beside_the_centres(outlines)
    first: dict[tuple[int, float], int] = {}
    for place, (row, _, number, _) in enumerate(crossings):
        first.setdefault((number, row), place)
    ways: list[dict[int, Polygon]] = [{} for _ in outlines]
    # What is reached from a hole lies further right, so it is complete before the hole is.
    for number in sorted(holes, key=lambda hole: -outlines[hole][:, 0].min()):
        hole = outlines[number]
        place = first[number, float(hole[hole[:, 0].argmin(), 1]) + _BESIDE_THE_CENTRES]
        (_, left, around, joint), (row, column, _, edge) = crossings[place - 1 : place + 1]
        cut = np.array([[left, row], [column, row]])
        turned = {(key - edge - 1) % len(hole): way for key, way in ways[number].items()}
        ways[around][joint] = np.vstack([cut, _with_ways(np.roll(hole, -edge - 1, axis=0), turned), cut[::-1]])
    others = set(range(len(outlines))) - set(holes)
    return [_with_ways(outlines[number], ways[number]) for number in sorted(others)]


def _with_ways(outline: Polygon, ways: dict[int, Polygon]) -> Polygon:
    """An outline that takes a way after the first corner of some of its edges."""
    pieces: list[Polygon] = []
    last = 0
    for edge in sorted(ways):
        pieces += [outline[last : edge + 1], ways[edge]]
        last = edge + 1
    return np.vstack([*pieces, outline[last:]])


def _crossings_beside_the_centres(outlines: list[Polygon]) -> list[tuple[float, float, int, int]]:
    """Where edges cross rows beside the centres of pixels, row by row: row, column, number of outline and edge.

    An edge of `trace` crosses at most one.
    """
    found: list[tuple[float, float, int, int]] = []
    for number, outline in enumerate(outlines):
        (x, y), (next_x, next_y) = outline.T, np.roll(outline, -1, axis=0).T
        rows = np.ceil(np.minimum(y, next_y) - _BESIDE_THE_CENTRES) + _BESIDE_THE_CENTRES
        edges = np.flatnonzero(rows < np.maximum(y, next_y))
        along = (rows - y)[edges] / (next_y - y)[edges]
        columns = x[edges] + along * (next_x - x)[edges]
        found += zip(rows[edges].tolist(), columns.tolist(), [number] * len(edges), edges.tolist(), strict=True)
    return sorted(found)


def _signed_area(polygon: Polygon) -> float:
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


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
