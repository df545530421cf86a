"""Even-odd at pixel centres: by hand, against matplotlib's point-in-polygon, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.dicom.structures import rasterise, trace

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


def test_a_region_with_a_hole_has_two_outlines():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert len(trace(mask)) == 2
