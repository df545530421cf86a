"""Components slice by slice are SciPy's of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from sam2_3dmed.inference.postprocess import find_components

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))


@given(mask=MASKS, diagonal=st.booleans())
def test_they_are_scipys(mask, diagonal):
    expected, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3 if diagonal else 1))
    sizes, select = find_components(mask.__getitem__, len(mask), diagonal=diagonal)
    assert len(sizes) == count
    assert sizes.tolist() == np.bincount(expected.ravel(), minlength=count + 1)[1:].tolist()
    for k in range(count):
        where = np.stack(list(select(np.arange(count) == k)))
        assert np.array_equal(where, expected == k + 1)


@pytest.mark.parametrize(("diagonal", "count"), [(True, 1), (False, 2)])
def test_a_corner_connects_or_not(diagonal, count):
    mask = np.zeros((2, 2, 2), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    sizes, _ = find_components(mask.__getitem__, 2, diagonal=diagonal)
    assert len(sizes) == count


def test_nothing():
    sizes, select = find_components(np.zeros((3, 2, 2), dtype=bool).__getitem__, 3, diagonal=True)
    assert sizes.tolist() == []
    assert not any(plane.any() for plane in select(np.zeros(0, dtype=bool)))
