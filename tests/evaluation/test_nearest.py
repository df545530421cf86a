import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.evaluation import surface
from sam2_3dmed.evaluation.surface import nearest_mm

WAYS = {
    "transform at once": {"_SMALL_BOX": 10**9},
    "lookup": {"_LOOKED_UP": 10**5},
    "lookup, then tree": {"_LOOKED_UP": 5, "_MAX_VISITS_PER_VOXEL": 10**9},
    "lookup, then transform": {"_LOOKED_UP": 5, "_MAX_VISITS_PER_VOXEL": 0},
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request, monkeypatch):
    """One way to find the nearest, forced."""
    for name, value in ({"_SMALL_BOX": 0} | request.param).items():
        monkeypatch.setattr(surface, name, value)
    surface._steps.cache_clear()
    yield
    surface._steps.cache_clear()


@st.composite
def place_sets(draw):
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    pair = [draw(arrays(bool, shape)) for _ in range(2)]
    for voxels in pair:
        voxels.flat[draw(st.integers(0, voxels.size - 1))] = True
    return pair


def test_every_way_finds_the_nearest(way):
    @settings(max_examples=60)
    @given(pair=place_sets(), spacing_mm=st.tuples(*[st.floats(0.3, 6)] * 3))
    def check(pair, spacing_mm):
        voxels_mm, targets_mm = (np.argwhere(voxels) * spacing_mm for voxels in pair)
        apart_mm = np.linalg.norm(voxels_mm[:, None] - targets_mm[None], axis=-1)
        np.testing.assert_allclose(nearest_mm(*pair, spacing_mm), apart_mm.min(axis=1), atol=1e-9)

    check()


def test_all_ways_agree_to_the_last_bit(monkeypatch):
    rng = np.random.default_rng(0)
    voxels, targets = rng.random((2, 25, 30, 35)) < 0.003
    answers = []
    for limits in WAYS.values():
        with monkeypatch.context() as patch:
            for name, value in ({"_SMALL_BOX": 0} | limits).items():
                patch.setattr(surface, name, value)
            surface._steps.cache_clear()
            answers.append(nearest_mm(voxels, targets, (0.7, 1.1, 2.9)))
    surface._steps.cache_clear()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("size", [3, 60])
def test_nothing_to_find(size):
    empty, one = np.zeros((size, size, size), dtype=bool), np.zeros((size, size, size), dtype=bool)
    one[1, 1, 1] = True
    assert nearest_mm(empty, one, (1, 1, 1)).shape == (0,)
    assert nearest_mm(one, empty, (1, 1, 1)).tolist() == [np.inf]


def test_very_uneven_spacing_takes_no_room_beyond_the_array():
    voxels, targets = np.zeros((2, 3, 50, 50), dtype=bool)
    voxels[0, 0, 0] = targets[2, 0, 3] = True
    assert nearest_mm(voxels, targets, (1e-5, 40, 2)) == pytest.approx(6)
