"""Even-odd at pixel centres: by hand, against matplotlib's point-in-polygon, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.dicom.contours import rasterise, trace

SQUARE = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])


def test_a_square_by_hand():
    """Columns 1 to 3 of rows 1 and 2."""
    expected = np.zeros((5, 4), bool)
    expected[1:4, 1:3] = True
    assert np.array_equal(rasterise([SQUARE], (5, 4)), expected)
    assert np.array_equal(rasterise([SQUARE[::-1]], (5, 4)), expected)


def test_a_polygon_in_another_is_a_hole():
    inner = np.array([[1.5, 0.8], [2.5, 0.8], [2.5, 1.4], [1.5, 1.4]])
    mask = rasterise([SQUARE, inner], (5, 4))
    assert mask.sum() == 5
    assert not mask[2, 1]


def test_corners_on_centre_lines_count_once():
    """A diamond whose corners are pixel centres; each row crosses it where it must."""
    diamond = np.array([[2, 0], [4, 2], [2, 4], [0, 2]], float)
    assert rasterise([diamond], (5, 5)).sum(axis=0).tolist() == [0, 2, 4, 2, 0]


def test_beyond_the_picture_is_cut_off():
    assert rasterise([SQUARE * 100 - 50], (5, 4)).all()
    assert not rasterise([SQUARE + 100], (5, 4)).any()


def test_nothing():
    assert not rasterise([], (5, 4)).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_matplotlib(seed):
    from matplotlib.path import Path

    polygon = np.random.default_rng(seed).uniform(-2, 14, (9, 2))
    polygon = polygon[np.argsort(np.arctan2(*(polygon - polygon.mean(axis=0)).T))]  # a star has no crossings
    points = np.stack(np.meshgrid(np.arange(13), np.arange(11), indexing="ij"), axis=-1).reshape(-1, 2)
    expected = Path(np.vstack([polygon, polygon[:1]]), closed=True).contains_points(points).reshape(13, 11)
    assert np.array_equal(rasterise([polygon], (13, 11)), expected)


@given(arrays(bool, st.tuples(st.integers(2, 9), st.integers(2, 9))))
def test_there_and_back(mask):
    """Also for pixels that touch at a corner, holes, and regions that end at the border."""
    assert np.array_equal(rasterise(trace(mask), mask.shape), mask)


def filled_by_others(outlines, size):
    """Two other rasterisers; each fills every outline by itself, as viewers do, by winding numbers or even-odd."""
    from matplotlib.path import Path
    from skimage.draw import polygon2mask

    centres = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, 2)
    matplotlib, skimage = np.zeros(size, bool), np.zeros(size, bool)
    for outline in outlines:
        matplotlib |= Path(np.vstack([outline, outline[:1]]), closed=True).contains_points(centres).reshape(size)
        skimage |= polygon2mask(size, outline)
    return matplotlib, skimage


def test_a_hole_is_a_keyhole():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (outline,) = trace(mask)
    for filled in filled_by_others([outline], mask.shape):
        assert np.array_equal(filled, mask)


def test_holes_beside_each_other_and_islands_in_holes():
    mask = np.zeros((17, 15), bool)
    mask[1:16, 1:14] = True
    for left in (2, 5, 8, 11):
        mask[left : left + 2, 3:5] = False
    mask[3:14, 6:12] = False
    mask[5:12, 7:11] = True
    mask[7:9, 8:10] = False
    outlines = trace(mask)
    assert len(outlines) == 2  # the region and the island
    for filled in filled_by_others(outlines, mask.shape):
        assert np.array_equal(filled, mask)


@given(arrays(bool, st.tuples(st.integers(2, 9), st.integers(2, 9))))
def test_other_programs_fill_the_same_mask(mask):
    for filled in filled_by_others(trace(mask), mask.shape):
        assert np.array_equal(filled, mask)


def test_an_outline_that_is_there_twice_counts_once():
    """From another corner, in the other direction, and rounded otherwise."""
    again = np.roll(SQUARE, 1, axis=0)[::-1] + 0.001
    assert rasterise([SQUARE, again, SQUARE], (5, 4)).sum() == 6
