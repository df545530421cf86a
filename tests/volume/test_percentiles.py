"""Counting finds the same values as sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_3dmed.volume import percentiles as ranks
from sam2_3dmed.volume.percentiles import percentiles, values_at

DTYPES = ["?", "u1", "i1", "i2", "u2", ">i2", "i4", "u4", "i8", "u8", "f2", "f4", ">f4", "f8", ">f8"]


@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_every_rank_is_that_of_a_sorted_copy(data, dtype):
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=2))
    options = {"allow_nan": False, "allow_infinity": False} if "f" in dtype else {}
    values = data.draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), **options)))
    expected = np.sort(values, axis=None).astype(np.float64)
    assert values_at(values, range(values.size)) == expected.tolist()


@pytest.mark.parametrize("dtype", ["i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_pieces_of_any_size_and_any_memory_order(monkeypatch, dtype, piece):
    monkeypatch.setattr(ranks, "_PIECE", piece)
    whole = (np.random.default_rng(0).normal(size=(11, 10, 9)) * 3000).astype(dtype)
    for values in (whole, whole.T, whole[::-1, ::2, 1:], np.asfortranarray(whole).transpose(1, 0, 2)):
        ordered = np.sort(values, axis=None)
        places = [0, 1, values.size // 2, values.size - 1]
        assert values_at(values, places) == ordered[places].astype(float).tolist()


@given(
    values=hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-1e6, 1e6, width=32)),
    bounds=st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted),
)
def test_percentiles_are_numpys(values, bounds):
    assert percentiles(values, *bounds) == pytest.approx(
        np.percentile(values.astype(np.float64), bounds).tolist(), rel=1e-9, abs=1e-9
    )


def test_between_distant_integers_nothing_overflows():
    assert percentiles(np.array([-32768] * 3 + [32767] * 3, np.int16), 0, 50) == (-32768, -0.5)


def test_one_value():
    assert percentiles(np.full((1, 1, 1), 2.5, np.float32), 0.5, 99.5) == (2.5, 2.5)
