"""Volume: arrays and affines that it accepts, spacing, orientation, grids."""

import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.volume import describe_difference, same_grid

ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
LETTERS = {1: "RAS", -1: "LPI"}


def axis_affine(axes, signs, spacing=(1.0, 1.0, 1.0)):
    """Array axis i runs along world axis axes[i], in the direction signs[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for i, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, i] = sign * spacing[i]
    affine[:3, 3] = (-10, 20, 30)
    return affine


def test_grid_of_a_plain_volume():
    volume = Volume(np.zeros((2, 3, 4), np.int16), np.diag([0.5, 0.75, 3.0, 1]))
    assert volume.shape == (2, 3, 4)
    assert volume.num_channels == 1
    assert volume.spacing_mm == (0.5, 0.75, 3.0)
    assert volume.canonical_spacing_mm == (0.5, 0.75, 3.0)
    assert volume.orientation == "RAS"
    assert volume.affine.dtype == np.float64


def test_channels_are_not_part_of_the_shape():
    volume = Volume(np.zeros((2, 3, 4, 2)), np.eye(4))
    assert volume.shape == (2, 3, 4)
    assert volume.num_channels == 2


def test_the_array_is_not_copied_and_the_affine_is_frozen():
    array, affine = np.zeros((2, 3, 4), np.int16), np.eye(4)
    volume = Volume(array, affine)
    assert volume.array is array
    affine[0, 0] = 7
    assert volume.spacing_mm == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 0] = 7


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_orientation_of_every_axis_order(axes, signs):
    spacing = (0.5, 2.0, 3.0)
    volume = Volume(np.zeros((2, 3, 4)), axis_affine(axes, signs, spacing))
    assert volume.orientation == "".join(LETTERS[sign][world] for world, sign in zip(axes, signs, strict=True))
    assert volume.spacing_mm == spacing
    assert volume.canonical_spacing_mm == tuple(spacing[axes.index(world)] for world in range(3))


def test_spacing_of_an_oblique_volume_has_the_array_axis_order():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix() @ np.diag([0.7, 0.8, 5])
    assert Volume(np.zeros((2, 3, 4)), affine).spacing_mm == pytest.approx((0.7, 0.8, 5.0), rel=1e-12)


@given(
    order=st.sampled_from(ORDERS),
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: np.linalg.norm(d) > 0.1),
    degrees=st.floats(-44, 44),
)
def test_a_turn_below_45_degrees_keeps_the_orientation(order, direction, degrees):
    plain = axis_affine(*order, spacing=(0.5, 2.0, 3.0))
    turned = plain.copy()
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array(direction) / np.linalg.norm(direction))
    turned[:3, :3] = turn.as_matrix() @ plain[:3, :3]
    assert canonical_axes(turned) == canonical_axes(plain)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "a volume has 3 axes, or 4 with channels, not 2"),
        (np.zeros((2, 3, 4, 2, 1)), "a volume has 3 axes, or 4 with channels, not 5"),
        (np.zeros((2, 3, 4, 1)), "the fourth axis holds 2 or 3 channels, not 1"),
        (np.zeros((2, 3, 4, 4)), "the fourth axis holds 2 or 3 channels, not 4"),
        (np.zeros((2, 0, 4)), r"there are no voxels \(shape \(2, 0, 4\)\)"),
        (np.zeros((2, 3, 4), complex), "voxels must be integers or real numbers, not complex128"),
    ],
)
def test_unusable_arrays(array, message):
    with pytest.raises(VolumeError, match=message):
        Volume(array, np.eye(4))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "the affine must be 4 x 4"),
        (np.diag([1, np.nan, 1, 1]), "the affine holds NaN or infinite values"),
        (np.diag([1, np.inf, 1, 1]), "the affine holds NaN or infinite values"),
        (np.diag([1, 1e200, 1, 1]), "the affine holds NaN or infinite values"),
        (np.diag([1, 0.5, 0, 1]), "the affine is singular: the voxel size is 1 x 0.5 x 0 mm"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "its axes lie in one plane"),
        (np.diag([1, 1, 1, 2]), "last row must be 0 0 0 1"),
    ],
)
def test_unusable_affines(affine, message):
    with pytest.raises(VolumeError, match=message):
        Volume(np.zeros((2, 3, 4)), affine)


def test_tiny_voxels_are_not_singular():
    assert Volume(np.zeros((2, 3, 4)), np.diag([1e-4, 1e-4, 1e-4, 1])).spacing_mm == (1e-4, 1e-4, 1e-4)


def test_with_array_keeps_the_grid():
    volume = Volume(np.zeros((2, 3, 4)), np.diag([1, 2, 3, 1]))
    mask = volume.with_array(np.ones((2, 3, 4), bool))
    assert same_grid(volume, mask)
    assert mask.array.all()
    assert volume.with_array(np.zeros((2, 3, 4, 3))).num_channels == 3
    with pytest.raises(VolumeError, match=r"shape \(2, 3, 5\) does not fit the grid \(2, 3, 4\)"):
        volume.with_array(np.zeros((2, 3, 5)))


def test_describe_difference():
    def volume(shape=(11, 11, 11), **changes):
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        for index, value in changes.items():
            affine[int(index[1]), int(index[2])] = value
        return Volume(np.zeros(shape), affine)

    assert describe_difference(volume(), volume()) is None
    assert describe_difference(volume(), volume((11, 11, 12))) == "shapes differ: (11, 11, 11) and (11, 11, 12)"
    assert describe_difference(volume(), volume(a00=-1)) == "affines differ: orientations RAS and LAS"
    assert describe_difference(volume(), volume(a22=3)) == "affines differ: spacings 1 x 1 x 2 mm and 1 x 1 x 3 mm"
    shifted = volume(a03=0.35)
    assert describe_difference(volume(), shifted) == "affines differ: the same voxel lies up to 0.35 mm apart"
    assert same_grid(volume(), shifted, tolerance_mm=0.35)
    assert not same_grid(volume(), shifted, tolerance_mm=0.34)


def test_a_small_turn_counts_where_it_is_largest():
    """1 mrad about z moves the far corner of 101 x 101 voxels by 0.1414 mm, the origin not at all."""
    straight = Volume(np.zeros((101, 101, 2), np.uint8), np.eye(4))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 1e-3).as_matrix()
    other = straight.with_array(straight.array)
    other = Volume(other.array, turned)
    assert same_grid(straight, other, 0.1415)
    assert not same_grid(straight, other, 0.1413)


def test_read_and_write(tmp_path):
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1, 2, 3, 1]))
    volume.write(tmp_path / "v.nii.gz")
    again = Volume.read(tmp_path / "v.nii.gz")
    assert again.array.dtype == np.int16
    np.testing.assert_array_equal(again.array, volume.array)
    assert same_grid(again, volume, 0)


def test_importing_stays_light():
    code = (
        "import sys, sam2_3dmed.volume.preprocess, sam2_3dmed.volume.label; "
        "print([m for m in ('torch', 'nibabel', 'scipy', 'transformers', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
