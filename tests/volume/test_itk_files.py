"""NRRD and MetaImage, read and written as SimpleITK and nibabel understand them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed import Volume
from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.volume.files import uncropped
from sam2_3dmed.volume.itk_files import ENDINGS
from sam2_3dmed.volume.volume import same_grid

sitk = pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 2), (3, 4, 5, 3), (3, 4, 1)])
def test_the_same_volume_as_from_nifti(tmp_path, ending, shape, voxels, oblique):
    """SimpleITK converts a NIfTI file; we read both."""
    volume = Volume(voxels(np.int16, shape), oblique)
    volume.write(tmp_path / "v.nii.gz")
    if len(shape) == 3:
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "v.nii.gz")), str(tmp_path / f"v{ending}"))
    else:
        channels = [sitk.GetImageFromArray(np.ascontiguousarray(volume.array[..., c].T)) for c in range(shape[3])]
        volume.with_array(volume.array[..., 0]).write(tmp_path / "first.nii.gz")
        image = sitk.Compose(channels)
        image.CopyInformation(sitk.ReadImage(str(tmp_path / "first.nii.gz")))
        sitk.WriteImage(image, str(tmp_path / f"v{ending}"))
    found = Volume.read(tmp_path / f"v{ending}")
    assert found.array.dtype == np.int16
    np.testing.assert_array_equal(found.array, volume.array)
    assert same_grid(found, volume, 1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3)])
def test_round_trip(tmp_path, ending, dtype, shape, voxels, oblique):
    volume = Volume(voxels(np.float64, shape).astype(dtype), oblique)
    volume.write(tmp_path / f"v{ending}")
    again = Volume.read(tmp_path / f"v{ending}")
    np.testing.assert_array_equal(again.array, volume.array)
    assert same_grid(again, volume, 1e-6)
    names = {file.name for file in tmp_path.iterdir()}
    assert f"v{ending}" in names
    assert all(name.startswith("v.") for name in names)


def test_a_sheared_grid_survives(tmp_path, voxels):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 0.6
    Volume(voxels(np.uint8), affine).write(tmp_path / "v.nrrd")
    np.testing.assert_allclose(Volume.read(tmp_path / "v.nrrd").affine, affine, atol=1e-6)


def test_capitals(tmp_path, voxels, oblique):
    Volume(voxels(np.uint8), oblique).write(tmp_path / "v.mha")
    (tmp_path / "v.mha").rename(tmp_path / "V.MHA")
    np.testing.assert_array_equal(Volume.read(tmp_path / "V.MHA").array, voxels(np.uint8))


def test_a_mask_for_an_image_that_itk_reads_by_its_qform(tmp_path):
    image, turned = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None), np.diag([1.0, 1, 2, 1])
    turned[0, 3] = 10
    image.set_sform(turned, 2)
    image.set_qform(np.diag([-1.0, -1, 2, 1]), 1)
    nib.save(image, tmp_path / "image.nii.gz")
    Volume.read(tmp_path / "image.nii.gz").write(tmp_path / "mask.mha")
    mask, original = (sitk.ReadImage(str(tmp_path / name)) for name in ("mask.mha", "image.nii.gz"))
    assert mask.GetDirection() == original.GetDirection()
    assert mask.GetOrigin() == original.GetOrigin()


def test_what_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(VolumeError, match=r"none\.nrrd: no such file"):
        Volume.read(tmp_path / "none.nrrd")
    (tmp_path / "folder.mha").mkdir()
    with pytest.raises(VolumeError, match="this is a folder"):
        Volume.read(tmp_path / "folder.mha")
    (tmp_path / "text.nrrd").write_text("not an image")
    with pytest.raises(VolumeError, match=r"text\.nrrd: cannot be read: .+") as caught:
        Volume.read(tmp_path / "text.nrrd")
    assert "\n" not in str(caught.value)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 2, 2), np.nan, np.float32)), str(tmp_path / "nan.mha"))
    with pytest.raises(VolumeError, match="8 of 8 voxels are NaN or infinite"):
        Volume.read(tmp_path / "nan.mha")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2), np.complex64)), str(tmp_path / "complex.nrrd"))
    with pytest.raises(VolumeError, match="voxels must be integers or real numbers, not complex"):
        Volume.read(tmp_path / "complex.nrrd")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(ConfigError, match=r"need the extra: pip install 'sam2-3dmed\[itk\]'"):
        Volume.read(tmp_path / "complex.nrrd")


def test_nothing_is_left_where_a_file_cannot_be_written(tmp_path):
    with pytest.raises(VolumeError, match=r"v\.mha: cannot be written: No such file or directory"):
        Volume(np.zeros((2, 2, 2)), np.eye(4)).write(tmp_path / "none" / "v.mha")
    assert list(tmp_path.iterdir()) == []


class TestCroppedSegmentation:
    """3D Slicer leaves out the empty border of a segmentation."""

    def test_it_is_laid_onto_its_image(self, tmp_path, voxels, oblique):
        image = Volume(voxels(np.int16, (8, 9, 10)), oblique)
        label = np.zeros((8, 9, 10), np.uint8)
        label[2:5, 3:8, 4:6] = 1
        image.with_array(label).write(tmp_path / "whole.nrrd")
        whole = sitk.ReadImage(str(tmp_path / "whole.nrrd"))
        sitk.WriteImage(whole[2:5, 3:8, 4:6], str(tmp_path / "label.seg.nrrd"))
        cropped = Volume.read(tmp_path / "label.seg.nrrd")
        assert cropped.shape == (3, 5, 2)
        np.testing.assert_array_equal(uncropped(cropped, tmp_path / "label.seg.nrrd", image).array, label)

    @pytest.mark.parametrize("shift", [(0.4, 0, 0), (-1, 0, 0), (6, 0, 0)])
    def test_what_lies_elsewhere_stays_as_it_is(self, shift):
        image = Volume(np.zeros((8, 9, 10)), np.eye(4))
        moved = np.eye(4)
        moved[:3, 3] = shift
        label = Volume(np.ones((3, 5, 2), np.uint8), moved)
        assert uncropped(label, Path("label.seg.nrrd"), image) is label

    def test_files_of_other_kinds_stay_as_they_are(self):
        image, label = Volume(np.zeros((8, 9, 10)), np.eye(4)), Volume(np.ones((3, 5, 2), np.uint8), np.eye(4))
        assert uncropped(label, Path("label.seg.nrrd"), image).shape == image.shape
        assert uncropped(label, Path("label.nii.gz"), image) is label
