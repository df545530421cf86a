"""Small pieces go and holes are filled, class by class, in place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from sam2_3dmed.config import InferenceConfig, changed
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.postprocess import postprocess, require_known_classes
from sam2_3dmed.volume.volume import Volume

LABELS = {1: "liver", 2: "tumour", 300: "rib"}
EVERYWHERE = np.ones((3, 3, 3), dtype=bool)


def applied(array, spacing=(1, 1, 1), **options):
    """A new array."""
    mask = Volume(np.array(array, order="K"), np.diag([*spacing, 1.0]))
    postprocess(mask, LABELS, InferenceConfig(**options))
    return mask.array


class TestLargestComponent:
    def test_by_hand(self):
        labels = np.zeros((5, 5, 5), dtype=np.uint16)
        labels[0, 0, :3] = 300  # three voxels stay
        labels[4, 4, 3:] = 300  # two go
        labels[2, 2, 2] = 2  # one voxel of its class stays
        expected = labels.copy()
        expected[4, 4, 3:] = 0
        assert np.array_equal(applied(labels, largest_component=True), expected)

    def test_of_the_named_classes_only(self):
        labels = np.array([1, 1, 0, 1, 2, 0, 2], dtype=np.uint8).reshape(7, 1, 1)
        found = applied(labels, largest_component=("liver",))
        assert found.ravel().tolist() == [1, 1, 0, 0, 2, 0, 2]

    @pytest.mark.parametrize("step", [(0, 0, 1), (0, 1, 1), (1, 1, 1), (1, -1, 1)])
    def test_faces_edges_and_corners_connect(self, step):
        labels = np.zeros((4, 4, 4), dtype=np.uint8)
        place = np.array([1, 2, 1])
        labels[tuple(place)] = labels[tuple(place + step)] = 1
        assert np.array_equal(applied(labels, largest_component=True), labels)

    def test_classes_do_not_connect_each_other(self):
        labels = np.array([1, 2, 1, 1], dtype=np.uint8).reshape(4, 1, 1)
        assert applied(labels, largest_component=True).ravel().tolist() == [0, 2, 1, 1]

    def test_of_two_equal_pieces_the_first_stays(self):
        labels = np.array([1, 1, 0, 1, 1], dtype=np.uint8).reshape(5, 1, 1)
        assert applied(labels, largest_component=True).ravel().tolist() == [1, 1, 0, 0, 0]

    def test_nothing_stays_nothing(self):
        assert not applied(np.zeros((2, 3, 4), dtype=np.uint8), largest_component=True, fill_holes=True).any()

    @given(labels=hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 2)), order=st.sampled_from("CF"))
    def test_any_mask_in_any_memory_order(self, labels, order):
        expected = np.zeros_like(labels)
        for value in (1, 2):
            pieces, count = ndimage.label(labels == value, EVERYWHERE)
            if count:
                sizes = np.bincount(pieces.ravel())[1:]
                found = applied(np.asarray(labels, order=order), largest_component=True) == value
                assert np.count_nonzero(found) == sizes.max()
                assert np.unique(pieces[found]).size == 1
            else:
                expected[labels == value] = value


class TestMinimumVolume:
    LABELS = np.array([1, 1, 0, 1, 2, 2, 0, 2, 0], dtype=np.uint8).reshape(9, 1, 1)

    def test_pieces_below_it_go(self):
        """A voxel of 10 x 10 x 5 mm is 0.5 ml."""
        found = applied(self.LABELS, (10, 10, 5), min_volume_ml=1.0)
        assert found.ravel().tolist() == [1, 1, 0, 0, 2, 2, 0, 0, 0]

    def test_by_name(self):
        found = applied(self.LABELS, (10, 10, 5), min_volume_ml={"tumour": 1.1})
        assert found.ravel().tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0]

    def test_a_piece_of_just_this_volume_stays_whatever_the_rounding(self):
        labels = np.ones((3, 1, 1), dtype=np.uint8)
        assert applied(labels, (0.1, 0.3, 0.7), min_volume_ml=3 * 0.1 * 0.3 * 0.7 / 1000).all()

    def test_also_the_largest(self):
        assert not applied(self.LABELS, (10, 10, 5), min_volume_ml=2.0, largest_component=True).any()


class TestFillHoles:
    def test_a_cavity_is_filled_and_a_tunnel_is_not(self):
        ball = np.ones((5, 5, 5), dtype=np.uint8)
        ball[2, 2, 2] = 0
        assert applied(ball, fill_holes=True).all()
        ball[2, 2, :] = 0
        assert np.array_equal(applied(ball, fill_holes=True), ball)

    def test_another_class_inside_stays(self):
        ball = np.ones((5, 5, 5), dtype=np.uint8)
        ball[2, 2, 1:4] = (2, 0, 2)
        expected = ball.copy()
        expected[2, 2, 2] = 1
        assert np.array_equal(applied(ball, fill_holes=("liver",)), expected)

    def test_what_a_removed_piece_leaves_is_filled(self):
        ball = np.ones((7, 5, 5), dtype=np.uint8)
        ball[2, 2, 2] = 2
        ball[4, 2, 2:4] = 2
        expected = ball.copy()
        expected[2, 2, 2] = 1
        assert np.array_equal(applied(ball, largest_component=True, fill_holes=True), expected)

    def test_holes_connect_by_faces_only(self):
        """A hole whose corner touches the outside is closed, for the shell around it connects by corners."""
        cube = np.ones((4, 4, 4), dtype=np.uint8)
        cube[0, 0, 0] = cube[1, 1, 1] = 0
        found = applied(cube, fill_holes=True)
        assert (found[1, 1, 1], found[0, 0, 0]) == (1, 0)

    @given(labels=hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 1)))
    def test_it_is_scipys(self, labels):
        expected = ndimage.binary_fill_holes(labels)
        assert np.array_equal(applied(labels, fill_holes=True), expected)


def test_nothing_asked_nothing_done():
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    assert np.array_equal(applied(labels), labels)


@pytest.mark.parametrize("volume", [-1.0, float("nan"), float("inf"), {"liver": -0.5}])
def test_a_volume_that_is_none(volume):
    with pytest.raises(ConfigError, match="inference: min_volume_ml"):
        changed(InferenceConfig(), {"min_volume_ml": volume}, "inference")


@pytest.mark.parametrize(
    "options", [{"largest_component": ("lung",)}, {"fill_holes": ("liver", "lung")}, {"min_volume_ml": {"lung": 1}}]
)
def test_a_class_that_is_not_there(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: no class 'lung'; there are liver, tumour, rib"):
        require_known_classes(InferenceConfig(**options), LABELS.values())
