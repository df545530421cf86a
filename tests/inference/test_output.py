"""Each format by the name a user gives it, and DICOM only where there is a series to refer to."""

import numpy as np
import pytest
from pydicom import dcmread

from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

LABELS = {1: "spleen"}


@pytest.fixture
def series(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "series", stored_voxels())
    return choose_series(tmp_path / "series")


@pytest.fixture
def mask(series):
    array = np.zeros(series.shape, np.uint8)
    array[2:5, 3, 1:3] = 1
    return Volume(array, series.affine)


def test_nifti_is_what_masks_are_by_default(mask, tmp_path):
    chosen = MaskFormat()
    assert chosen.ending == ".nii.gz"
    chosen.write(mask, tmp_path / "a.nii.gz")
    assert np.array_equal(read_label(tmp_path / "a.nii.gz").array, mask.array)


@pytest.mark.parametrize("name", ["nifti", "nrrd"])
def test_formats_without_a_series_are_the_same_with_one(mask, series, tmp_path, name):
    chosen = MaskFormat(name, LABELS)
    chosen.write(mask, tmp_path / f"with{chosen.ending}", series)
    chosen.write(mask, tmp_path / f"without{chosen.ending}")
    assert (tmp_path / f"with{chosen.ending}").read_bytes() == (tmp_path / f"without{chosen.ending}").read_bytes()


def test_nrrd(mask, tmp_path):
    MaskFormat("nrrd", LABELS).write(mask, tmp_path / "a.seg.nrrd")
    assert b"Segment0_Name:=spleen" in (tmp_path / "a.seg.nrrd").read_bytes()


@pytest.mark.parametrize(("name", "modality"), [("dicom-seg", "SEG"), ("rtstruct", "RTSTRUCT")])
def test_dicom(mask, series, tmp_path, name, modality):
    MaskFormat(name, LABELS).write(mask, tmp_path / "a.dcm", series)
    assert dcmread(tmp_path / "a.dcm").Modality == modality


@pytest.mark.parametrize("name", ["dicom-seg", "rtstruct"])
def test_dicom_without_a_series(mask, tmp_path, name):
    with pytest.raises(DataError, match=f"--format {name} refers to a DICOM series, which this input is not"):
        MaskFormat(name, LABELS).write(mask, tmp_path / "a.dcm")
    assert not list(tmp_path.glob("a.dcm"))


def test_names_of_formats():
    with pytest.raises(ConfigError, match="--format png: expected nifti, mha, nrrd, dicom-seg, rtstruct"):
        MaskFormat("png")
