"""The largest piece of each class stays."""

import numpy as np
import pytest

from sam2_3dmed.inference.postprocess import largest_component


def test_by_hand():
    labels = np.zeros((5, 5, 5), dtype=np.uint16)
    labels[0, 0, :3] = 300  # three voxels stay
    labels[4, 4, 3:] = 300  # two go
    labels[2, 2, 2] = 7  # one voxel of its class stays
    kept = largest_component(labels)
    expected = labels.copy()
    expected[4, 4, 3:] = 0
    assert np.array_equal(kept, expected)
    assert kept.dtype == np.uint16
    assert kept is not labels
    assert labels[4, 4, 4] == 300


@pytest.mark.parametrize("step", [(0, 0, 1), (0, 1, 1), (1, 1, 1), (1, -1, 1)])
def test_faces_edges_and_corners_connect(step):
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    place = np.array([1, 2, 1])
    labels[tuple(place)] = labels[tuple(place + step)] = 1
    assert np.array_equal(largest_component(labels), labels)


def test_classes_do_not_connect_each_other():
    labels = np.array([1, 2, 1, 1], dtype=np.uint8).reshape(4, 1, 1)
    assert largest_component(labels).ravel().tolist() == [0, 2, 1, 1]


def test_of_two_equal_pieces_one_stays():
    labels = np.array([1, 1, 0, 1, 1], dtype=np.uint8).reshape(5, 1, 1)
    assert largest_component(labels).ravel().tolist() == [1, 1, 0, 0, 0]


def test_nothing_stays_nothing():
    assert not largest_component(np.zeros((2, 3, 4), dtype=np.uint8)).any()
