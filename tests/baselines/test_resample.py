"""Grids: nothing moves, smooth images stay what they are, thick slices are not mixed."""

import numpy as np
import pytest

from sam2_3dmed.baselines.grid import resample_image, resample_labels, thick_axis


def test_which_axis_is_thick() -> None:
    assert thick_axis((1.0, 1.0, 1.0)) is None
    assert thick_axis((3.0, 1.0, 1.0)) is None
    assert thick_axis((1.0, 1.0, 1.0), (1.0, 1.0, 3.1)) == 2


def test_a_ramp_stays_a_ramp() -> None:
    """Voxel i of n lies at (i + 1/2) / n of the volume, before and after."""
    places = (np.arange(20) + 0.5) / 20
    ramp = np.broadcast_to(places[None, None, :, None], (1, 6, 20, 8)).astype(np.float32)
    found = resample_image(ramp, (6, 50, 8), None)
    assert found.shape == (1, 6, 50, 8)
    expected = (np.arange(50) + 0.5) / 50
    assert found[0, 3, 5:-5, 4] == pytest.approx(expected[5:-5], abs=1e-3)


def test_thick_slices_are_repeated() -> None:
    image = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    found = resample_image(image, (6, 8, 8), thick=0)
    assert np.array_equal(found[0, ::2], image[0])
    assert np.array_equal(found[0, 1::2], image[0])


def test_labels_of_twice_the_size_and_back() -> None:
    labels = np.zeros((6, 8, 8), dtype=np.uint8)
    labels[1:4, 2:6, 2:6] = 1
    labels[4:6, 2:6, 2:6] = 2
    large = resample_labels(labels, 2, (12, 16, 16), None)
    assert set(np.unique(large)) == {0, 1, 2}
    assert abs(int((large == 1).sum()) - 8 * int((labels == 1).sum())) < 0.15 * (large == 1).sum()
    assert np.array_equal(resample_labels(large, 2, (6, 8, 8), None), labels)
    assert np.array_equal(resample_labels(labels, 2, (6, 8, 8), None), labels)
