"""NIfTI files for these tests: nibabel writes them, then header fields change where a test asks for it."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="session")
def oblique():
    """An affine of 0.7 x 0.8 x 5 mm voxels, turned about every axis."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (20, -15, 130), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([0.7, 0.8, 5])
    affine[:3, 3] = (-123.4, 56.7, 890.1)
    return affine


@pytest.fixture(scope="session")
def voxels():
    """Makes an array whose values, up to 249, fit every dtype but int8."""

    def make(dtype, shape=(3, 4, 5)):
        return (np.arange(np.prod(shape)) % 250).reshape(shape).astype(dtype)

    return make


@pytest.fixture(scope="session")
def saved(oblique, voxels):
    """Writes a file with nibabel, sets the given header fields in place, and returns the path."""

    def save(path, array=None, affine=oblique, endianness="<", **fields):
        array = voxels(np.int16) if array is None else array
        header = nib.Nifti1Header(endianness=endianness)
        header.set_data_dtype(array.dtype)
        nib.save(nib.Nifti1Image(array, affine, header, dtype=array.dtype), path)
        if fields:
            _change_header(path, fields)
        return path

    return save


def _change_header(path, fields):
    content = path.read_bytes()
    zipped = content[:2] == b"\x1f\x8b"
    content = gzip.decompress(content) if zipped else content
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content) if zipped else content)
