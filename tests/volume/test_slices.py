"""Slices -> volume is the identity, and slices are where anatomy says."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.slices import slice_spacing_mm, volume_to_slices
from sam2_3dmed.volume.volume import same_grid

AXES = ("sagittal", "coronal", "axial")
# World axes (R, A, S) along D, H, W, as the documentation states them.
WORLD = {"sagittal": (0, 2, 1), "coronal": (1, 2, 0), "axial": (2, 1, 0)}
ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def axis_volume(axes, signs, shape=(3, 4, 5), spacing=(0.5, 2.0, 3.0)):
    """Array axis i runs along world axis axes[i], in the direction signs[i]; no two voxels are equal."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for i, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, i] = sign * spacing[i]
    affine[:3, 3] = (-10, 20, 30)
    return Volume(np.arange(np.prod(shape), dtype=np.int32).reshape(shape), affine)


def world_positions(volume):
    """(X, Y, Z, 3): where each voxel lies, in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def slices_to_volume(slices, like, axis):
    """Slices written into the view of an empty array, as masks are made."""
    array = np.empty(like.shape, slices.dtype)
    volume_to_slices(like.with_array(array), axis)[:] = slices
    return like.with_array(array)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_back_and_forth_for_every_axis_order(axes, signs, axis):
    volume = axis_volume(axes, signs)
    back = slices_to_volume(volume_to_slices(volume, axis), volume, axis)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine, volume.affine)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_slices_run_toward_right_anterior_and_superior(axes, signs, axis):
    """Slicing the voxels' own coordinates must give coordinates that grow by the spacing along D, H and W."""
    volume = axis_volume(axes, signs)
    positions = world_positions(volume)
    for slice_axis, world in enumerate(WORLD[axis]):
        coordinate = volume_to_slices(volume.with_array(positions[..., world]), axis)
        steps = np.diff(coordinate, axis=slice_axis)
        np.testing.assert_allclose(steps, slice_spacing_mm(volume, axis)[slice_axis])
        assert (steps > 0).all()


def test_slices_of_a_known_volume():
    """An LPS array, as scanners write it: both in-plane axes are flipped, and H is the patient's A axis."""
    array = np.array([[[1, 5], [2, 6]], [[3, 7], [4, 8]]], np.uint8)  # (L, P, S)
    volume = Volume(array, np.diag([-1, -1, 2, 1]))
    axial = volume_to_slices(volume, "axial")
    assert axial.tolist() == [[[4, 2], [3, 1]], [[8, 6], [7, 5]]]
    assert volume_to_slices(volume, "coronal").tolist() == [[[4, 2], [8, 6]], [[3, 1], [7, 5]]]
    assert volume_to_slices(volume, "sagittal").tolist() == [[[4, 3], [8, 7]], [[2, 1], [6, 5]]]
    assert slice_spacing_mm(volume, "axial") == (2, 1, 1)
    assert slice_spacing_mm(volume, "coronal") == (1, 2, 1)
    assert slice_spacing_mm(volume, "sagittal") == (1, 2, 1)


def test_all_axis_orders_of_one_patient_give_the_same_slices():
    reference = axis_volume((0, 1, 2), (1, 1, 1))
    expected = {axis: volume_to_slices(reference, axis) for axis in AXES}
    for axes, signs in ORDERS:
        steps = tuple(slice(None, None, sign) for sign in signs)
        stored = Volume(reference.array.transpose(axes)[steps], axis_volume(axes, signs).affine)
        for axis in AXES:
            np.testing.assert_array_equal(volume_to_slices(stored, axis), expected[axis])


@given(
    directions=hnp.arrays(np.float64, (3, 3), elements=st.floats(-1, 1)),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    axis=st.sampled_from(AXES),
    channels=st.sampled_from([1, 2, 3]),
)
def test_back_and_forth_for_any_oblique_or_sheared_affine(directions, spacing, shape, axis, channels):
    norms = np.linalg.norm(directions, axis=0)
    assume(norms.min() > 0.1 and abs(np.linalg.det(directions / norms)) > 1e-3)
    affine = np.eye(4)
    affine[:3, :3] = directions / norms * spacing
    array = np.arange(np.prod(shape) * channels).reshape(*shape, channels)
    volume = Volume(array if channels > 1 else array[..., 0], affine)
    slices = volume_to_slices(volume, axis)
    assert np.shares_memory(slices, volume.array)
    for channel in range(channels):
        one = slices[:, channel] if channels > 1 else slices
        back = slices_to_volume(one, volume, axis)
        np.testing.assert_array_equal(back.array, array[..., channel])
        np.testing.assert_array_equal(back.affine, volume.affine)


@pytest.mark.parametrize("axis", AXES)
def test_channels_follow_the_slices(axis):
    plain = axis_volume((1, 2, 0), (-1, 1, -1))
    both = plain.with_array(np.stack([plain.array, -plain.array], -1))
    slices = volume_to_slices(both, axis)
    expected = volume_to_slices(plain, axis)
    assert slices.shape == (expected.shape[0], 2, *expected.shape[1:])
    np.testing.assert_array_equal(slices[:, 0], expected)
    np.testing.assert_array_equal(slices[:, 1], -expected)


@pytest.mark.parametrize(("axis", "shape"), [("axial", (1, 4, 3)), ("coronal", (4, 1, 3)), ("sagittal", (3, 1, 4))])
def test_one_slice(axis, shape):
    volume = axis_volume((0, 1, 2), (1, -1, 1), shape=(3, 4, 1))
    slices = volume_to_slices(volume, axis)
    assert slices.shape == shape
    np.testing.assert_array_equal(slices_to_volume(slices, volume, axis).array, volume.array)


def test_an_axis_that_does_not_exist():
    with pytest.raises(VolumeError, match="no slicing axis 'oblique': choose sagittal, coronal or axial"):
        volume_to_slices(axis_volume((0, 1, 2), (1, 1, 1)), "oblique")


@pytest.mark.parametrize(
    ("folder", "label_values"), [("Task04_Hippocampus", {1, 2}), ("Task91_SarcomaCT", {1})], ids=["mr", "ct"]
)
def test_real_volumes_go_through_slices_and_files_unchanged(shared_data, tmp_path, folder, label_values):
    image_path = sorted((shared_data / folder / "imagesTr").glob("*.nii.gz"))[0]
    image = Volume.read(image_path)
    label = read_label(shared_data / folder / "labelsTr" / image_path.name, label_values)
    assert same_grid(image, label)
    assert label.array.dtype == np.uint8
    assert set(np.unique(label.array)) == {0} | label_values
    for axis in AXES:
        for volume in (image, label):
            back = slices_to_volume(volume_to_slices(volume, axis), volume, axis)
            back.write(tmp_path / "back.nii.gz")
            again = Volume.read(tmp_path / "back.nii.gz")
            assert again.array.dtype == volume.array.dtype
            np.testing.assert_array_equal(again.array, volume.array)
            assert same_grid(again, volume, 1e-4)


def test_real_ct_is_lps_and_axial_slices_are_the_thick_ones(shared_data):
    image = Volume.read(shared_data / "Task91_SarcomaCT" / "imagesTr" / "sts_019.nii.gz")
    assert image.orientation == "LPS"
    between, along_h, along_w = slice_spacing_mm(image, "axial")
    assert between == pytest.approx(3.27, abs=0.01)
    assert (along_h, along_w) == pytest.approx((0.977, 0.977), abs=0.001)
    np.testing.assert_array_equal(volume_to_slices(image, "axial")[0], image.array[::-1, ::-1, 0].T)
