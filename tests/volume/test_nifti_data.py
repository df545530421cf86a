"""Voxels take no more memory than in their file; that they are right, `test_nifti.py` shows."""

import tracemalloc

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume

SHAPE = (100, 100, 250)
"""2.5 million voxels."""


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16)


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def peak_of(work):
    """The result, and the largest number of bytes that NumPy and Python had in use meanwhile."""
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "endianness", "fields", "mapped"),
    [
        ("v.nii", "<", {}, True),
        ("v.nii", ">", {}, False),
        ("v.nii", "<", {"scl_slope": 2, "scl_inter": 0}, False),
        ("v.nii", "<", {"scl_slope": 1, "scl_inter": 0}, True),
        ("v.nii.gz", "<", {}, False),
    ],
)
def test_what_needs_no_change_is_mapped(tmp_path, saved, voxels, name, endianness, fields, mapped):
    path = saved(tmp_path / name, endianness=endianness, **fields)
    array = Volume.read(path).array
    assert is_mapped(array) == mapped
    np.testing.assert_array_equal(array, voxels(np.int16) * fields.get("scl_slope", 1))


def test_writing_to_a_mapped_array_does_not_touch_the_file(tmp_path, saved, voxels):
    path = saved(tmp_path / "v.nii")
    before = path.read_bytes()
    Volume.read(path).array[...] = 7
    assert path.read_bytes() == before
    np.testing.assert_array_equal(Volume.read(path).array, voxels(np.int16))


def test_a_mapped_file_may_be_replaced(tmp_path, saved, voxels):
    path = saved(tmp_path / "v.nii")
    volume = Volume.read(path)
    volume.with_array(volume.array + np.int16(1)).write(path)
    np.testing.assert_array_equal(volume.array, voxels(np.int16))
    np.testing.assert_array_equal(Volume.read(path).array, voxels(np.int16) + 1)


@pytest.mark.parametrize(
    ("fields", "times"),
    [({}, 1.0), ({"scl_slope": 1, "scl_inter": -1024}, 1.0), ({"scl_slope": 0.5, "scl_inter": 0}, 3.0)],
)
def test_memory_is_that_of_the_voxels_as_stored(tmp_path, saved, noise, fields, times):
    path = saved(tmp_path / "v.nii.gz", noise, **fields)
    _, peak = peak_of(lambda: Volume.read(path))
    assert peak < times * noise.nbytes + 34e6  # two pieces of a million voxels in 8 bytes each, at most


def test_looking_for_nan_makes_no_copy(tmp_path, saved, noise):
    path = saved(tmp_path / "v.nii", noise.astype(np.float64))
    _, peak = peak_of(lambda: Volume.read(path))
    assert peak < 3e6


def test_nan_beyond_the_first_piece_is_found(tmp_path, saved, noise):
    array = noise.astype(np.float32)
    array[-1, -1, -1], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(VolumeError, match="2 of 2500000 voxels are NaN or infinite"):
        Volume.read(saved(tmp_path / "v.nii", array))


def test_scaling_beyond_the_first_piece(tmp_path, saved, noise):
    path = saved(tmp_path / "v.nii.gz", noise, scl_slope=3, scl_inter=-1)
    np.testing.assert_array_equal(Volume.read(path).array, noise * 3 - 1)
