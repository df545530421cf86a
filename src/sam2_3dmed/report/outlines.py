"""Outlines of classes that run exactly along the edges of pixels, each edge drawn once."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
Lines = list[NDArray[np.int64]]
"""Polylines, each (n, 2): x from 0 to W and y from 0 to H, at corners of pixels; closed if it ends where it starts."""


def class_outlines(classes: NDArray[np.integer], num_classes: int) -> list[Lines]:
    """The outlines of classes 1..K; a border that two classes share belongs to the higher one.

    classes: (H, W), 0 background. Returns: for each class its lines.
    """
    above, left = _border_owners(classes)
    return [_trace(above == number, left == number) for number in range(1, num_classes + 1)]


def all_outlines(classes: NDArray[np.integer]) -> Lines:
    """Every border between two classes, or a class and the background, once."""
    above, left = _border_owners(classes)
    return _trace(above > 0, left > 0)


def _border_owners(classes: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """For the edge above each pixel, (H + 1, W), and left of it, (H, W + 1): the higher of the classes it divides.

    0 where an edge divides nothing. What lies outside the picture is background.
    """
    owners = []
    for axis in (0, 1):
        padded = np.pad(classes, [(1, 1) if axis == i else (0, 0) for i in (0, 1)])
        before, after = np.delete(padded, -1, axis), np.delete(padded, 0, axis)
        owners.append(np.where(before != after, np.maximum(before, after), 0))
    return owners[0], owners[1]


def _trace(above: NDArray[np.bool_], left: NDArray[np.bool_]) -> Lines:
    """Edges joined to lines as long as they go."""
    neighbours: defaultdict[Point, set[Point]] = defaultdict(set)
    for edges, (dx, dy) in ((above, (1, 0)), (left, (0, 1))):
        for y, x in np.argwhere(edges).tolist():
            neighbours[x, y].add((x + dx, y + dy))
            neighbours[x + dx, y + dy].add((x, y))
    # Where one or three edges meet a line must end: those first, then only loops are left.
    starts = sorted(point for point, others in neighbours.items() if len(others) % 2)
    lines = []
    for start in [*starts, *sorted(neighbours)]:
        while neighbours[start]:
            lines.append(np.array(_walk(start, neighbours)))
    return lines


def _walk(start: Point, neighbours: dict[Point, set[Point]]) -> list[Point]:
    """One line from `start`, straight on where it can, its edges taken away; corners only."""
    corners, here = [start], start
    direction: Point | None = None
    while neighbours[here]:
        ahead = (here[0] + direction[0], here[1] + direction[1]) if direction else None
        following = ahead if ahead in neighbours[here] else min(neighbours[here])
        neighbours[here].remove(following)
        neighbours[following].remove(here)
        turned = (following[0] - here[0], following[1] - here[1])
        if direction == turned:
            corners[-1] = following
        else:
            corners.append(following)
        here, direction = following, turned
        if here == start:
            break
    return corners
