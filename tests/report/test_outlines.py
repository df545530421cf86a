"""Outlines run along pixel edges, every border is drawn exactly once, and lines are as long as they can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.report.outlines import all_outlines, class_outlines


def edges(lines) -> list[tuple]:
    """The unit edges that lines run along."""
    found = []
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line[:-1].tolist(), line[1:].tolist(), strict=True):
            assert (x0 == x1) != (y0 == y1), "along the grid, and of some length"
            count = abs(x1 - x0) + abs(y1 - y0)
            points = [(x0 + (x1 - x0) * i // count, y0 + (y1 - y0) * i // count) for i in range(count + 1)]
            found += [tuple(sorted(pair)) for pair in itertools.pairwise(points)]
    return found


def test_a_pixel_is_a_closed_square() -> None:
    classes = np.zeros((3, 4), dtype=int)
    classes[1, 2] = 1
    (line,) = all_outlines(classes)
    assert line.tolist()[0] == line.tolist()[-1]
    assert {tuple(point) for point in line.tolist()} == {(2, 1), (3, 1), (3, 2), (2, 2)}
    assert len(line) == 5  # corners only


def test_a_mask_that_fills_the_picture_is_closed_at_its_edge() -> None:
    (line,) = all_outlines(np.ones((2, 5), dtype=int))
    assert {tuple(point) for point in line.tolist()} == {(0, 0), (5, 0), (5, 2), (0, 2)}


def test_a_hole_has_its_own_line() -> None:
    classes = np.ones((5, 5), dtype=int)
    classes[2, 2] = 0
    assert sorted(len(edges([line])) for line in all_outlines(classes)) == [4, 20]


def test_a_shared_border_belongs_to_the_higher_class() -> None:
    classes = np.array([[1, 1, 2, 2]])
    first, second = class_outlines(classes, 2)
    middle = ((2, 0), (2, 1))
    assert middle not in edges(first)
    assert middle in edges(second)
    assert len(edges(first)) == 5
    assert len(edges(second)) == 6


def test_the_border_of_two_classes_is_one_line_where_they_touch() -> None:
    """A solid line under a dashed one of the same border drawn twice, half a dash apart, would look solid."""
    found = edges(all_outlines(np.array([[1, 2], [1, 2]])))
    assert len(found) == len(set(found)) == 10


def test_nothing_to_outline() -> None:
    assert all_outlines(np.zeros((3, 3), dtype=int)) == []
    assert class_outlines(np.zeros((3, 3), dtype=int), 2) == [[], []]


@given(arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 3)))
def test_every_border_is_drawn_once_and_nothing_else(classes) -> None:
    padded = np.pad(classes, 1)
    borders = {((x, y), (x + 1, y)) for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()}
    borders |= {((x, y), (x, y + 1)) for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()}
    found = edges(all_outlines(classes))
    assert len(found) == len(set(found))
    assert set(found) == borders
    by_class = [edge for lines in class_outlines(classes, 3) for edge in edges(lines)]
    assert len(by_class) == len(set(by_class))
    assert set(by_class) == borders


@pytest.mark.parametrize("size", [1, 6])
def test_a_line_ends_only_where_an_odd_number_of_borders_meets(size: int) -> None:
    classes = np.kron(np.array([[1, 2], [3, 0]]), np.ones((size, size), dtype=int))
    ends = [tuple(line[i].tolist()) for line in all_outlines(classes) for i in (0, -1) if (line[0] != line[-1]).any()]
    assert sorted(ends) == sorted([(size, 0), (0, size)])
