"""Slices in any order make the file that the whole volume makes."""

import errno
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume import slices as slice_writer
from sam2_3dmed.volume.slices import volume_to_slices, writing_slices

AXES = ("sagittal", "coronal", "axial")


def some_volume(axes=(0, 1, 2), signs=(1, 1, 1), shape=(3, 4, 5)):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for i, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, i] = sign * (1.0, 2.0, 3.0)[i]
    return Volume(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), affine)


def write_in(order, path, volume, axis, **options):
    slices = volume_to_slices(volume, axis)
    with writing_slices(path, volume, axis, **options) as writer:
        for index in order:
            writer.write(index, slices[index])


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_order_and_direction(tmp_path, monkeypatch, axis):
    """In blocks of one plane and in one block, by turns: each order and each direction of an axis meets both."""
    for number, (axes, signs) in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
        monkeypatch.setattr(slice_writer, "_BLOCK_BYTES", 1 if (number + number // 8) % 2 else 1 << 26)
        volume = some_volume(axes, signs)
        volume.write(tmp_path / "whole.nii")
        count = len(volume_to_slices(volume, axis))
        for order in (range(count), range(count)[::-1], [*range(1, count), 0], [0, *range(2, count), 1]):
            write_in(order, tmp_path / "slices.nii", volume, axis)
            assert (tmp_path / "slices.nii").read_bytes() == (tmp_path / "whole.nii").read_bytes()


def test_slices_that_come_as_the_file_has_them_do_not_wait(tmp_path, monkeypatch):
    """Axial slices of an LPS file run upwards, as the network takes them; a file that runs down wants them backward."""
    kept = []
    monkeypatch.setattr(
        slice_writer.SliceWriter, "_read", lambda self, index: kept.append(index) or np.zeros((4, 3), np.uint8)
    )
    write_in(range(5), tmp_path / "a.nii", some_volume(signs=(-1, -1, 1)), "axial")
    write_in(range(5)[::-1], tmp_path / "a.nii", some_volume(signs=(-1, -1, -1)), "axial")
    assert kept == []
    write_in([0, 2, 3, 1, 4], tmp_path / "a.nii", some_volume(), "axial")
    assert kept == [2, 3, 4]


def test_more_than_memory_should_hold_waits_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_writer, "_KEPT_IN_MEMORY", 10)
    volume = some_volume()
    write_in(range(4), tmp_path / "a.nii.gz", volume, "coronal")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_array_equal(Volume.read(tmp_path / "a.nii.gz").array, volume.array)


def test_a_slope(tmp_path):
    volume = some_volume()
    write_in(range(5), tmp_path / "a.nii.gz", volume, "axial", slope=1 / 255)
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").get_fdata(), volume.array / 255, rtol=1e-6)
    np.testing.assert_allclose(Volume.read(tmp_path / "a.nii.gz").array, volume.array / 255, rtol=1e-6)


@pytest.mark.parametrize("axis", AXES)
def test_a_missing_slice_leaves_no_file(tmp_path, axis):
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: not every slice was written"):
        write_in([0, 2], tmp_path / "a.nii.gz", some_volume(), axis)
    assert list(tmp_path.iterdir()) == []


def test_what_ends_the_work_leaves_no_file(tmp_path):
    def interrupted():
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_in(interrupted(), tmp_path / "a.nii.gz", some_volume(), "axial")
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_slice(tmp_path, monkeypatch):
    def full(self, plane):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slice_writer.SliceWriter, "_append", full)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: cannot be written: No space left"):
        write_in(range(5), tmp_path / "a.nii.gz", some_volume(), "axial")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["absent/a.nii.gz", "a.png"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    with pytest.raises(VolumeError, match=r"a\.(nii\.gz|png): "):
        write_in(range(5), tmp_path / name, some_volume(), "axial")
