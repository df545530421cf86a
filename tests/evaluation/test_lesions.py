import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.lesions import LesionCounts, count_lesions


def mask_of(*places):
    mask = np.zeros((6, 6, 6), dtype=bool)
    for place in places:
        mask[place] = True
    return mask


def test_found_missed_and_invented():
    truth = mask_of((0, 0, 0), (2, 2, 2), (5, 5, 5))
    prediction = mask_of((0, 0, 0), (0, 0, 1), (5, 0, 0))
    assert count_lesions(prediction, truth) == LesionCounts(truth=3, found=1, invented=1)
    assert count_lesions(prediction, truth).f1() == 2 * 1 / (2 * 1 + 1 + 2)


@pytest.mark.parametrize("neighbour", [(2, 2, 3), (2, 3, 3), (3, 3, 3)], ids=["face", "edge", "corner"])
def test_voxels_that_touch_belong_together(neighbour):
    assert count_lesions(mask_of(), mask_of((2, 2, 2), neighbour)).truth == 1


def test_voxels_that_do_not_touch_are_apart():
    assert count_lesions(mask_of(), mask_of((2, 2, 2), (2, 2, 4))).truth == 2


def test_one_piece_may_find_several_and_several_may_find_one():
    several, one = mask_of((0, 0, 0), (0, 0, 2)), mask_of((0, 0, 0), (0, 0, 1), (0, 0, 2))
    assert count_lesions(one, several) == LesionCounts(truth=2, found=2, invented=0)
    assert count_lesions(several, one) == LesionCounts(truth=1, found=1, invented=0)


def test_nothing_anywhere_is_undefined():
    assert np.isnan(count_lesions(mask_of(), mask_of()).f1())
    assert count_lesions(mask_of(), mask_of((0, 0, 0))).f1() == 0
    assert count_lesions(mask_of((0, 0, 0)), mask_of()).f1() == 0


@given(masks=st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda shape: st.tuples(*[arrays(bool, shape)] * 2)))
def test_laws(masks):
    forth, back = count_lesions(*masks), count_lesions(*masks[::-1])
    assert 0 <= forth.found <= forth.truth
    assert back.truth - back.found == forth.invented
    assert forth.truth - forth.found == back.invented
    same = count_lesions(masks[0], masks[0])
    assert same.truth == same.found
    assert same.invented == 0


def test_masks_must_be_boolean():
    with pytest.raises(VolumeError, match="boolean"):
        count_lesions(mask_of().astype(int), mask_of())
