"""A mask lies where its image lies, in nibabel's programs and in ITK's, whatever forms the image has."""

import itertools
import logging

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sam2_3dmed import Volume
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.files import require_same_grid
from sam2_3dmed.volume.nrrd import write_segmentation_nrrd
from sam2_3dmed.volume.volume import same_grid

sitk = pytest.importorskip("SimpleITK")

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(degrees, origin):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = origin
    return affine


def sheared(degrees):
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    affine[1, 2] = 2.5 * np.tan(np.deg2rad(degrees))
    return affine


FORMS = {
    "none": (None, 0, None, 0),
    "qform only": (None, 0, turned((10, 20, 30), (1, 2, 3)), 1),
    "sform only": (turned((10, 20, 30), (1, 2, 3)), 1, None, 0),
    "equal": (turned((10, 20, 30), (1, 2, 3)), 1, turned((10, 20, 30), (1, 2, 3)), 1),
    "differ": (turned((10, 20, 30), (1, 2, 3)), 1, turned((0, 0, 90), (-9, 2, 3)), 1),
    "aligned sform": (turned((10, 20, 30), (1, 2, 3)), 2, turned((0, 0, 90), (-9, 2, 3)), 1),
    "template, no qform": (turned((10, 20, 30), (1, 2, 3)), 4, None, 0),
    "gantry tilt": (sheared(18.5), 1, sheared(18.5), 1),
    "small shear": (sheared(0.02), 1, sheared(0.02), 1),
}


def save(path, forms, shape=(8, 10, 6), units="mm"):
    sform, sform_code, qform, qform_code = FORMS[forms]
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    image.header["sform_code"] = image.header["qform_code"] = 0
    if qform is not None:
        image.set_qform(qform, qform_code, strip_shears=True)
    if sform is not None:
        image.set_sform(sform, sform_code)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def by_itk(path):
    """The affine (RAS) by which SimpleITK reads a file."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


@pytest.mark.parametrize("forms", FORMS)
def test_a_mask_lies_where_its_image_lies(tmp_path, forms):
    image = save(tmp_path / "image.nii.gz", forms)
    volume = Volume.read(image)
    mask = tmp_path / "mask.nii.gz"
    volume.with_array((volume.array > 200).astype(np.uint8)).write(mask)
    np.testing.assert_array_equal(by_itk(mask), by_itk(image))
    np.testing.assert_array_equal(nib.load(mask).affine, nib.load(image).affine)
    before, after = nib.load(image).header, nib.load(mask).header
    for form in ("sform", "qform"):
        assert after[f"{form}_code"] == before[f"{form}_code"]
        np.testing.assert_array_equal(getattr(after, f"get_{form}")(), getattr(before, f"get_{form}")())


@pytest.mark.parametrize("forms", FORMS)
def test_itk_reads_a_file_as_we_say(tmp_path, forms):
    image = save(tmp_path / "image.nii.gz", forms)
    np.testing.assert_allclose(Volume.read(image).itk_affine, by_itk(image), atol=2e-5)


@pytest.mark.parametrize("qfac", [1, 0, -1])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_signs_of_the_voxel_size_and_of_the_axes(tmp_path, axes, signs, codes, qfac):
    """ITK multiplies by the signed size, and may take forms for one whose axes differ in sign; nibabel does neither."""
    image = save_signed(tmp_path / "image.nii", np.array((2, 3, 4)) * axes, np.array((2, 3, 4)) * signs, codes, qfac)
    volume = Volume.read(image)
    assert_lies_there(volume, image, tmp_path)


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("size", [(2, 3, 4), (0.7, 0.7, 2.5), (1, 1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_forms_whose_axes_differ_in_sign(tmp_path, order, size, flips):
    """A turned image's axes have signs in ITK's comparison."""
    sform, qform = np.eye(3)[list(order)] * size, np.eye(3)[list(order)] * size * flips
    image = save_signed(tmp_path / "image.nii", sform, size, (2, 1), None, qform)
    assert_lies_there(Volume.read(image), image, tmp_path)


def save_signed(path, sform, pixdim, codes, qfac, qform=None):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((5, 6, 7))
    for setter, form, code in ((header.set_sform, sform, codes[0]), (header.set_qform, qform, codes[1])):
        form = sform if form is None else form
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.diag(form) if np.ndim(form) == 1 else form, (10, 20, 30)
        setter(affine, code)
    header["pixdim"][1:4] = pixdim
    if qfac is not None:
        header["pixdim"][0] = qfac
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(4 + 5 * 6 * 7))
    return path


def assert_lies_there(volume, image, folder):
    """The image and its masks in three formats lie in one place for ITK, and a NIfTI mask does for nibabel."""
    np.testing.assert_allclose(volume.itk_affine, by_itk(image), atol=2e-5)
    mask = volume.with_array(np.ones(volume.shape, np.uint8))
    for name in ("mask.nii.gz", "mask.mha"):
        mask.write(folder / name)
    write_segmentation_nrrd(mask, folder / "mask.seg.nrrd", {1: "organ"})
    for name in ("mask.nii.gz", "mask.mha", "mask.seg.nrrd"):
        np.testing.assert_allclose(by_itk(folder / name), by_itk(image), atol=2e-5)
    np.testing.assert_array_equal(volume.affine, nib.load(image).affine)
    np.testing.assert_array_equal(nib.load(folder / "mask.nii.gz").affine, nib.load(image).affine)


def test_the_sform_that_itk_refuses():
    """Without a qform there is nothing else to read a sheared image by."""
    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    header.set_sform(sheared(18.5), 1)
    header["qform_code"] = 0
    volume = Volume(np.zeros((2, 2, 2)), sheared(18.5))
    assert volume.placement is None
    np.testing.assert_array_equal(volume.itk_affine, volume.affine)


@pytest.mark.parametrize("size", [0, np.nan])
def test_a_form_that_nobody_can_use_beside_one_that_can_be_read(tmp_path, size):
    """ITK would take the qform, whose voxel size is none; nothing is warned of, and the mask lies by the sform."""
    image = save(tmp_path / "image.nii", "aligned sform")
    content = bytearray(image.read_bytes())
    content[80:84] = np.float32(size).tobytes()  # pixdim[1]
    image.write_bytes(content)
    volume = Volume.read(image)
    np.testing.assert_array_equal(volume.itk_affine, volume.affine)
    write_segmentation_nrrd(volume.with_array(np.ones((8, 10, 6), np.uint8)), tmp_path / "mask.seg.nrrd", {1: "organ"})
    np.testing.assert_allclose(by_itk(tmp_path / "mask.seg.nrrd"), volume.affine, atol=2e-5)


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_the_unit_is_kept(tmp_path, units, factor):
    image = save(tmp_path / "image.nii.gz", "equal", units=units)
    volume = Volume.read(image)
    assert volume.spacing_mm == pytest.approx((0.7 * factor, 0.8 * factor, 2.5 * factor))
    volume.write(tmp_path / "again.nii.gz")
    assert nib.load(tmp_path / "again.nii.gz").header.get_xyzt_units()[0] == units
    np.testing.assert_array_equal(Volume.read(tmp_path / "again.nii.gz").affine, volume.affine)


@pytest.mark.parametrize("forms", FORMS)
def test_a_segmentation_for_slicer_lies_where_slicer_shows_the_image(tmp_path, forms):
    image = save(tmp_path / "image.nii.gz", forms)
    mask = Volume.read(image).with_array(np.ones((8, 10, 6), np.uint8))
    write_segmentation_nrrd(mask, tmp_path / "mask.seg.nrrd", {1: "organ"})
    np.testing.assert_allclose(by_itk(tmp_path / "mask.seg.nrrd"), by_itk(image), atol=2e-5)


@pytest.mark.parametrize("forms", FORMS)
def test_a_label_that_itk_saved_is_on_the_grid(tmp_path, forms, caplog):
    """As ITK-SNAP, 3D Slicer and nnU-Net save it: one affine in both forms, the one by which ITK read the image."""
    image = save(tmp_path / "image.nii.gz", forms, (60, 60, 6))
    opened = sitk.ReadImage(str(image))
    label = sitk.Image(opened.GetSize(), sitk.sitkUInt8)
    label.CopyInformation(opened)
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    volumes = Volume.read(image), Volume.read(tmp_path / "label.nii.gz")
    with caplog.at_level(logging.WARNING):
        require_same_grid(volumes[0], image, volumes[1], tmp_path / "label.nii.gz")
    # nibabel reads these images by another form than ITK
    expected = forms in ("none", "aligned sform", "gantry tilt")
    assert [record.message.endswith("its forms are read as ITK does") for record in caplog.records] == [True] * expected


@pytest.mark.parametrize(("voxels", "lines"), [(0.04, 0), (0.2, 1)])
def test_a_small_part_of_a_voxel_is_one_grid(voxels, lines, caplog, tmp_path):
    affine, moved = np.diag([0.5, 0.5, 4.0, 1.0]), np.diag([0.5, 0.5, 4.0, 1.0])
    moved[0, 3] = voxels * 0.5
    a, b = (Volume(np.zeros((20, 20, 5)), grid) for grid in (affine, moved))
    with caplog.at_level(logging.WARNING):
        require_same_grid(a, tmp_path / "a.nii", b, tmp_path / "b.nii")
    assert [f"up to {voxels:g} voxels apart" in record.message for record in caplog.records] == [True] * lines


def test_a_third_of_a_voxel_is_another_grid(tmp_path):
    moved = np.eye(4)
    moved[0, 3] = 0.34
    a, b = (Volume(np.zeros((20, 20, 5)), grid) for grid in (np.eye(4), moved))
    assert not same_grid(a, b)
    with pytest.raises(VolumeError, match=r"the same voxel lies up to 0\.34 mm apart"):
        require_same_grid(a, tmp_path / "a.nii", b, tmp_path / "b.nii")


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("degrees", [0, 18.5, 30])
def test_spacing_of_a_tilted_gantry_is_between_the_planes(axes, degrees):
    """Planes 2.5 mm apart, whichever array axis is oblique; the product is the volume of a voxel."""
    affine = sheared(degrees)
    affine[:3, :3] = affine[:3, list(axes)]
    spacing = Volume(np.zeros((2, 3, 4)), affine).spacing_mm
    assert spacing == pytest.approx([(0.7, 0.8, 2.5)[axis] for axis in axes], rel=1e-12)
    assert np.prod(spacing) == pytest.approx(abs(np.linalg.det(affine)), rel=1e-12)
