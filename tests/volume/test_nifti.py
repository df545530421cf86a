"""NIfTI in and out: nibabel is the oracle."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip
from scipy.spatial.transform import Rotation

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.nifti import read_affine
from sam2_3dmed.volume.volume import same_grid


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_reads_what_nibabel_wrote(tmp_path, dtype, endianness, ending, saved, voxels, oblique):
    array = voxels(dtype)
    volume = Volume.read(saved(tmp_path / f"v{ending}", array, endianness=endianness))
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, oblique, rtol=1e-6)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_affine_alone(tmp_path, ending, saved, voxels):
    path = saved(tmp_path / f"v{ending}", voxels("i2"))
    np.testing.assert_array_equal(read_affine(path), Volume.read(path).affine)
    path.write_bytes(path.read_bytes()[:50])
    for broken in (path, tmp_path / "nothing.nii"):
        with pytest.raises(VolumeError, match=f"{broken.name}: "):
            read_affine(broken)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_nibabel_reads_what_we_wrote(tmp_path, dtype, ending, voxels, oblique):
    array = voxels(dtype)
    Volume(array, oblique).write(tmp_path / f"v{ending}")
    image = nib.load(tmp_path / f"v{ending}")
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, oblique, rtol=1e-6)
    np.testing.assert_allclose(image.get_qform(), oblique, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.header.get_zooms() == pytest.approx((0.7, 0.8, 5))


@pytest.mark.parametrize(("given_dtype", "stored"), [(bool, np.uint8), (np.float16, np.float32)])
def test_dtypes_that_nifti_has_not(tmp_path, given_dtype, stored, voxels, oblique):
    array = (voxels(np.uint8) % 2).astype(given_dtype)
    Volume(array, oblique).write(tmp_path / "v.nii.gz")
    again = Volume.read(tmp_path / "v.nii.gz")
    assert again.array.dtype == stored
    np.testing.assert_array_equal(again.array, array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 4, 1), (1, 1, 1), (3, 4, 5, 2), (3, 4, 5, 3)])
def test_round_trip_of_shapes_and_memory_orders(tmp_path, shape, order, voxels, oblique):
    volume = Volume(np.asarray(voxels(np.float64, shape) + 0.1, order=order)[::-1], oblique)
    volume.write(tmp_path / "v.nii.gz")
    again = Volume.read(tmp_path / "v.nii.gz")
    assert again.num_channels == volume.num_channels
    np.testing.assert_array_equal(again.array, volume.array)


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 10)] * 3),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    shear=st.sampled_from([0, 0.001, 0.2]),
)
def test_round_trip_of_affines(tmp_path_factory, angles, spacing, signs, shear, oblique):
    """Whichever of sform and qform a program prefers, it finds the voxels where they were."""
    affine = oblique.copy()
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    skew = np.eye(3)
    skew[0, 1] = shear
    affine[:3, :3] = turn @ skew @ np.diag(np.multiply(spacing, signs))
    path = tmp_path_factory.mktemp("affine") / "v.nii"
    volume = Volume(np.zeros((30, 40, 20), np.uint8), affine)
    volume.write(path)
    assert same_grid(Volume.read(path), volume, 1e-3)
    header = nib.load(path).header
    assert header["qform_code"] == 0 or same_grid(Volume(volume.array, header.get_qform()), volume, 0.02 * min(spacing))


def test_a_sheared_affine_gets_no_qform_and_a_flipped_one_does(tmp_path, voxels):
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    Volume(voxels(np.uint8), sheared).write(tmp_path / "v.nii")
    assert nib.load(tmp_path / "v.nii").header["qform_code"] == 0
    Volume(voxels(np.uint8), np.diag([-1, -1, 3, 1])).write(tmp_path / "v.nii")
    assert nib.load(tmp_path / "v.nii").header["qform_code"] == 1


def test_the_same_volume_gives_the_same_bytes_under_any_name(tmp_path, voxels, oblique):
    volume = Volume(voxels(np.int16), oblique)
    volume.write(tmp_path / "a.nii.gz")
    volume.write(tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        ("i2", 2, -1024, np.int16),
        ("i2", 1000, 0, np.uint16),
        ("i2", -40000, 1, np.int32),
        ("i4", 1, -1024, np.int32),
        ("i8", 1, 2**31, np.uint32),
        ("i8", 2**33, 0, np.float64),
        ("i2", 0.5, -1024, np.float32),
        ("i2", 1, 0.5, np.float32),
        ("u2", 0.5, 0, np.float32),
        ("u1", 1, -10, np.int8),
        ("i4", 0.5, 3, np.float64),
        ("f8", 2, 0, np.float64),
        ("i2", 1, 0, np.int16),
        ("i2", 0, 5, np.int16),
        ("i2", np.nan, np.nan, np.int16),
    ],
)
def test_slope_and_intercept(tmp_path, stored, slope, intercept, expected, saved, voxels):
    path = saved(tmp_path / "v.nii.gz", voxels(stored), scl_slope=slope, scl_inter=intercept)
    array = Volume.read(path).array
    assert array.dtype == expected
    np.testing.assert_allclose(array, nib.load(path).get_fdata(), rtol=1e-6)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ((3, 4), (3, 4, 1)),
        ((3, 4, 1), (3, 4, 1)),
        ((3, 4, 5, 1), (3, 4, 5)),
        ((3, 4, 5, 1, 1), (3, 4, 5)),
        ((3, 4, 5, 2), (3, 4, 5, 2)),
        ((3, 4, 5, 1, 3), (3, 4, 5, 3)),
    ],
)
def test_shapes(tmp_path, stored, read, saved, voxels):
    array = voxels(np.int16, stored)
    volume = Volume.read(saved(tmp_path / "v.nii", array))
    np.testing.assert_array_equal(volume.array, array.reshape(read))


def test_the_content_decides_whether_a_file_is_gzipped(tmp_path, saved, voxels):
    saved(tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    saved(tmp_path / "b.nii").rename(tmp_path / "b.nii.gz")
    for name in ("a.nii", "b.nii.gz"):
        np.testing.assert_array_equal(Volume.read(tmp_path / name).array, voxels(np.int16))


def test_a_gzip_file_of_several_members(tmp_path, saved, voxels):
    content = saved(tmp_path / "v.nii").read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(Volume.read(tmp_path / "v.nii.gz").array, voxels(np.int16))


def test_voxels_behind_header_extensions(tmp_path, voxels, oblique):
    image = nib.Nifti1Image(voxels(np.int16), oblique)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / "v.nii")
    np.testing.assert_array_equal(Volume.read(tmp_path / "v.nii").array, voxels(np.int16))


@pytest.mark.parametrize("kind", [nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair], ids=lambda kind: kind.__name__)
def test_nifti2_and_pairs(tmp_path, kind, voxels, oblique):
    name = "v.img" if "Pair" in kind.__name__ else "v.nii.gz"
    kind(voxels(np.int16), oblique).to_filename(tmp_path / name)
    for path in tmp_path.iterdir():
        volume = Volume.read(path)
        np.testing.assert_array_equal(volume.array, voxels(np.int16))
        np.testing.assert_allclose(volume.affine, oblique, rtol=1e-6)


def test_the_affine_is_the_sform_then_the_qform_then_the_voxel_size(tmp_path, saved, oblique):
    sform = {"srow_x": [2, 0, 0, 9], "srow_y": [0, 3, 0, 9], "srow_z": [0, 0, 4, 9]}
    both = Volume.read(saved(tmp_path / "both.nii", **sform, sform_code=1, qform_code=1))
    np.testing.assert_array_equal(both.affine, [[2, 0, 0, 9], [0, 3, 0, 9], [0, 0, 4, 9], [0, 0, 0, 1]])
    qform = Volume.read(saved(tmp_path / "qform.nii", **sform, sform_code=0, qform_code=1))
    np.testing.assert_allclose(qform.affine, oblique, atol=1e-4)
    neither = Volume.read(saved(tmp_path / "neither.nii", **sform, sform_code=0, qform_code=0))
    np.testing.assert_allclose(neither.affine, nib.load(tmp_path / "neither.nii").affine)
    assert neither.spacing_mm == pytest.approx((0.7, 0.8, 5))


def test_a_qform_with_qfac_zero_or_a_negative_voxel_size_is_repaired_as_nibabel_does(tmp_path, capfd, saved):
    pixdim = np.array([0, 0.7, -0.8, 5, 1, 1, 1, 1])
    path = saved(tmp_path / "v.nii", sform_code=0, qform_code=1, quatern_b=0.1, pixdim=pixdim)
    volume = Volume.read(path)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(volume.affine, nib.load(path).affine)


@pytest.mark.parametrize(("units", "spacing"), [(0, 0.5), (1, 500.0), (2, 0.5), (3, 0.0005), (2 + 8, 0.5)])
def test_units_become_mm(tmp_path, units, spacing, saved):
    path = saved(tmp_path / "v.nii", affine=np.diag([0.5, 0.5, 0.5, 1]), xyzt_units=units)
    assert Volume.read(path).spacing_mm == pytest.approx((spacing,) * 3)


def test_a_2d_file_without_a_third_voxel_size(tmp_path, saved, voxels):
    pixdim = np.array([1, 0.5, 0.5, 0, 0, 0, 0, 0])
    path = saved(tmp_path / "v.nii", voxels(np.uint8, (3, 4)), sform_code=0, qform_code=0, pixdim=pixdim)
    assert Volume.read(path).spacing_mm == (0.5, 0.5, 1)


def test_a_written_file_is_as_readable_as_any_other(tmp_path, voxels, oblique):
    Volume(voxels(np.uint8), oblique).write(tmp_path / "mask.nii.gz")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "mask.nii.gz").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert igzip.open(tmp_path / "mask.nii.gz").read()[344:347] == b"n+1"


def test_real_files_read_as_nibabel_reads_them(shared_data):
    for path in [
        shared_data / "Task91_SarcomaCT" / "imagesTr" / "sts_019.nii.gz",
        *sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:5],
        *sorted((shared_data / "abdomen_ct_3mm").glob("*.nii.gz")),
    ]:
        volume, image = Volume.read(path), nib.load(path)
        np.testing.assert_allclose(volume.affine, image.affine, rtol=1e-12)
        np.testing.assert_allclose(volume.array, image.get_fdata(), rtol=1e-6)
