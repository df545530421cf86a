"""Label maps: any dtype in, small integers out, and no value that the data set does not name."""

from itertools import pairwise

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.label import class_colour, read_label


@pytest.mark.parametrize(
    ("stored", "values", "expected"),
    [
        ("u1", [0, 1, 2], np.uint8),
        ("i2", [0, 1, 255], np.uint8),
        ("i2", [0, 256, 3], np.uint16),
        ("i8", [0, 65535, 3], np.uint16),
        ("f4", [0, 1, 2], np.uint8),
        ("f8", [0, 300, 2], np.uint16),
        ("u2", [0, 0, 0], np.uint8),
    ],
)
def test_labels_of_any_dtype(tmp_path, stored, values, expected, saved):
    path = saved(tmp_path / "l.nii.gz", np.array(values, stored).reshape(3, 1, 1))
    label = read_label(path)
    assert label.array.dtype == expected
    assert label.array.ravel().tolist() == values
    assert read_label(path, allowed=set(values)).array.ravel().tolist() == values


def test_a_label_that_the_file_scales(tmp_path, saved):
    array = np.array([0, 85, 170, 255], np.uint8).reshape(2, 2, 1)
    path = saved(tmp_path / "l.nii", array, scl_slope=1 / 85, scl_inter=0)
    assert read_label(path).array.ravel().tolist() == [0, 1, 2, 3]


def test_a_2d_label(tmp_path, saved, voxels):
    assert read_label(saved(tmp_path / "l.nii", voxels(np.uint8, (3, 4)))).array.shape == (3, 4, 1)


@pytest.mark.parametrize(
    ("array", "allowed", "line"),
    [
        (np.array([[[0, 1.5, 2]]]), None, "label values must be integers, not 1.5"),
        (np.array([[[0.25, 0.5, 0.25]]], np.float32), None, "label values must be integers, not 0.25, 0.5"),
        (np.arange(10.0).reshape(1, 1, 10) + 0.5, None, "not 0.5, 1.5, 2.5, 3.5, 4.5 and 5 more"),
        (np.array([[[0, -1, -3]]], np.int16), None, "label values must not be negative: -3, -1"),
        (np.array([[[0, -2.0, 1]]]), None, "label values must not be negative: -2"),
        (np.array([[[0, 70000, 1]]], np.int32), None, "label values must not exceed 65535: 70000"),
        (
            np.array([[[0, 1, 2, 5, 9]]], np.uint8),
            (1, 2),
            "label values that are not allowed: 5, 9 (allowed: 0, 1, 2)",
        ),
        (np.array([[[0, 1000]]], np.uint16), {1}, "label values that are not allowed: 1000 (allowed: 0, 1)"),
        (np.array([[[0, 1]]], np.uint8), [], "label values that are not allowed: 1 (allowed: 0)"),
        (np.zeros((2, 3, 4, 2), np.uint8), None, "a label has one value a voxel, not 2 channels"),
    ],
)
def test_labels_that_cannot_be(tmp_path, array, allowed, line, saved):
    path = saved(tmp_path / "label_3.nii.gz", array)
    with pytest.raises(VolumeError) as caught:
        read_label(path, allowed)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(line)


def test_colours_of_117_classes_differ_and_neighbours_do_so_clearly():
    colours = [class_colour(number) for number in range(1, 118)]
    assert len(set(colours)) == 117
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)) > 60
