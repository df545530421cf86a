"""Slices in their order, by numbers worked out by hand; test_series.py has the series that are refused."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.dicom.files import DicomFile
from sam2_3dmed.dicom.series import Plane, arrange
from sam2_3dmed.errors import VolumeError


def plane(position, directions=((1, 0, 0), (0, 1, 0)), index=0):
    return Plane(
        DicomFile(Path(f"{index}.dcm")),
        index,
        np.array(position, float),
        np.array(directions, float),
        (0.5, 0.75),
        3.0,
        (4, 6),
        (16, True),
        1.0,
        0.0,
    )


def test_sorted_along_the_normal_whatever_the_order():
    ordered, affine = arrange([plane((0, 0, z), index=i) for i, z in enumerate((4, -2, 0, 2))])
    assert [p.index for p in ordered] == [1, 2, 3, 0]
    assert affine.tolist() == [[-0.5, 0, 0, 0], [0, -0.75, 0, 0], [0, 0, 2, -2], [0, 0, 0, 1]]


def test_the_normal_decides_the_direction():
    """Rows that run backwards: the normal points down, and so the first slice is the highest."""
    ordered, affine = arrange([plane((0, 0, z), ((1, 0, 0), (0, -1, 0)), i) for i, z in enumerate((0, 1))])
    assert [p.index for p in ordered] == [1, 0]
    assert np.linalg.det(affine[:3, :3]) > 0


def test_one_slice_is_as_thick_as_it_says():
    assert arrange([plane((1, 2, 3))])[1][2, 2] == 3.0


@pytest.mark.parametrize("jitter", [0.04, -0.04])
def test_rounded_positions_are_even(jitter):
    _, affine = arrange([plane((0, 0, z)) for z in (0, 0.625 + jitter, 1.25, 1.875)])
    assert affine[2, 2] == pytest.approx(0.625)


def test_a_lean_below_the_tolerance_is_no_tilt_and_one_above_is():
    arrange([plane((0, 0.009 * z, z)) for z in range(11)])
    with pytest.raises(VolumeError, match=r"leans by 1\.1 degrees"):
        arrange([plane((0, 0.02 * z, z)) for z in range(11)])
