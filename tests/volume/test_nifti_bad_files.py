"""Every bad file gets the one line it must get, and a failed write leaves nothing behind."""

import errno
import gzip
import io
import re
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.label import read_label

NOISE = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
RGB = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_AFFINE = "the affine is singular"
QFORM = {"sform_code": 0, "qform_code": 1}


def with_bytes(content, position, new):
    position %= len(content)
    return content[:position] + new + content[position + len(new) :]


# Changes of a good .nii.gz file's bytes, and of the bytes within.
BAD_BYTES = {
    "empty": (lambda zipped, plain: b"", "the file is empty"),
    "text": (lambda zipped, plain: b"no image" * 100, "this is not a NIfTI image"),
    "zipped text": (lambda zipped, plain: gzip.compress(b"no image" * 100), "this is not a NIfTI image"),
    "zipped nothing": (lambda zipped, plain: gzip.compress(b""), "this is not a NIfTI image"),
    "cut in the header": (lambda zipped, plain: zipped[:40], "the file is truncated"),
    "cut in the voxels": (lambda zipped, plain: zipped[:-4000], "the file is truncated"),
    "no checksum": (lambda zipped, plain: zipped[:-8], "the file is truncated"),
    "wrong checksum": (
        lambda zipped, plain: with_bytes(zipped, -8, b"oops"),
        "the compressed data is damaged",
    ),
    "damaged": (
        lambda zipped, plain: with_bytes(zipped, 3000, b"\xff" * 100),
        "the compressed data is damaged",
    ),
    "plain, cut in the header": (lambda zipped, plain: plain[:347], "this is not a NIfTI image"),
    "plain, cut in the voxels": (
        lambda zipped, plain: plain[:-7],
        "the file is truncated: 15993 of 16000 bytes of voxels",
    ),
    "the header of a pair": (
        lambda zipped, plain: with_bytes(plain[:348], 344, b"ni1"),
        "this is a header whose .img file is missing",
    ),
    "no voxels at all": (
        lambda zipped, plain: plain[:352],
        "the file is truncated: 0 of 16000 bytes of voxels",
    ),
}

# Header fields of an otherwise good file of 3 x 4 x 5 int16 voxels.
BAD_HEADERS = {
    "enormous": (
        {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        "the file is truncated: 70362301923326 bytes of voxels cannot be in 472 bytes",
    ),
    "negative": ({"dim": [3, 3, -4, 5, 1, 1, 1, 1]}, "there are no voxels (shape (3, -4, 5))"),
    "one axis": ({"dim": [1, 3, 4, 5, 1, 1, 1, 1]}, "an image has 2 to 7 axes, its header says 1"),
    "no such dtype": ({"datatype": 9999}, "there is no voxel type of code 9999"),
    "binary": ({"datatype": 1}, "voxels must be integers or real numbers, not binary"),
    "infinite once scaled": ({"scl_slope": 3e38, "scl_inter": 0}, "58 of 60 voxels are NaN or infinite"),
    "no intercept": (
        {"scl_slope": 2, "scl_inter": np.nan},
        "the header scales the voxels by 2 and adds nan (scl_slope, scl_inter)",
    ),
    "zero sform": ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, f"{BAD_AFFINE}: the voxel size is 0 x 0 x 0 mm"),
    "NaN sform": ({"srow_y": [0, np.nan, 0, 0]}, "the affine holds NaN or infinite values"),
    "flat sform": (
        {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        f"{BAD_AFFINE}: its axes lie in one plane",
    ),
    "zero spacing": (
        QFORM | {"pixdim": [1, 0.5, 0, 5, 1, 1, 1, 1]},
        f"{BAD_AFFINE}: the voxel size is 0.5 x 0 x 5 mm",
    ),
    "NaN spacing": (
        {"sform_code": 0, "pixdim": [1, 0.5, np.nan, 5, 1, 1, 1, 1]},
        "the affine holds NaN or infinite values",
    ),
    "NaN qform": (QFORM | {"quatern_c": np.nan}, "the affine holds NaN or infinite values"),
    "infinite qform": (
        QFORM | {"pixdim": [1, np.inf, 1, 1, 1, 1, 1, 1]},
        "the affine holds NaN or infinite values",
    ),
    "long qform": (
        QFORM | {"quatern_b": 2, "quatern_c": 2},
        "the affine is unusable: its quaternion (qform) is no rotation",
    ),
}

BAD_ARRAYS = {
    "four channels": (
        np.zeros((3, 4, 5, 4), np.int16),
        "a volume is 3D, or 4D with 2 or 3 channels; this image has the shape (3, 4, 5, 4)",
    ),
    "a series of vectors": (
        np.zeros((3, 4, 5, 2, 3), np.int16),
        "a volume is 3D, or 4D with 2 or 3 channels; this image has the shape (3, 4, 5, 2, 3)",
    ),
    "NaN": (np.array([[[0, np.nan, -np.inf, 1]]], np.float32), "2 of 4 voxels are NaN or infinite"),
    "infinite": (np.array([[[0, np.inf]]]), "1 of 2 voxels are NaN or infinite"),
    "complex": (np.zeros((3, 4, 5), np.complex64), "voxels must be integers or real numbers, not complex64"),
    "RGB": (RGB, "voxels must be integers or real numbers, not RGB"),
}


def check_line(path, line, capfd):
    """Each way to read the file raises this very line, and nothing is printed."""
    for read in (read_label, Volume.read):
        with pytest.raises(VolumeError, match=f"^{re.escape(f'{path}: {line}')}$"):
            read(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("change", "line"), BAD_BYTES.values(), ids=BAD_BYTES)
def test_bad_bytes(tmp_path, saved, capfd, change, line):
    path = saved(tmp_path / "case_07.nii.gz", NOISE)
    zipped = path.read_bytes()
    path.write_bytes(change(zipped, gzip.decompress(zipped)))
    check_line(path, line, capfd)


@pytest.mark.parametrize(("fields", "line"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers(tmp_path, saved, capfd, fields, line):
    check_line(saved(tmp_path / "case_07.nii", **fields), line, capfd)


@pytest.mark.parametrize(("array", "line"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(tmp_path, saved, capfd, array, line):
    check_line(saved(tmp_path / "case_07.nii.gz", array), line, capfd)


def test_no_file_and_no_image(tmp_path, capfd):
    check_line(tmp_path / "absent.nii.gz", "no such file or folder", capfd)
    check_line(tmp_path, "this is a folder, not an image file", capfd)


def test_nifti2_cut_in_its_header(tmp_path, oblique, capfd):
    path = tmp_path / "case_07.nii"
    nib.Nifti2Image(NOISE, oblique).to_filename(path)
    path.write_bytes(path.read_bytes()[:500])
    check_line(path, "the file is truncated inside its header", capfd)


@pytest.mark.parametrize(("gone", "left"), [(".hdr", ".img"), (".img", ".hdr")])
def test_half_a_pair(tmp_path, oblique, gone, left):
    nib.Nifti1Pair(NOISE, oblique).to_filename(tmp_path / "v.img")
    (tmp_path / f"v{gone}").unlink()
    with pytest.raises(VolumeError, match=rf"v\{left}: .*\{gone}.* is missing"):
        Volume.read(tmp_path / f"v{left}")


def test_every_cut_of_a_file_is_noticed(tmp_path, saved):
    """However much is missing at the end, the answer is an error and never an image of zeros."""
    content = saved(tmp_path / "v.nii.gz").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.nii.gz").write_bytes(content[:length])
        with pytest.raises(VolumeError, match=r"cut\.nii\.gz: "):
            Volume.read(tmp_path / "cut.nii.gz")


def test_every_damaged_byte_of_compressed_voxels_is_noticed(tmp_path, saved):
    content = saved(tmp_path / "v.nii.gz", NOISE[:5, :5, :5]).read_bytes()
    path = tmp_path / "damaged.nii.gz"
    for position in range(100, len(content)):
        path.write_bytes(with_bytes(content, position, bytes([content[position] ^ 0x55])))
        with pytest.raises(VolumeError, match=r"damaged\.nii\.gz: "):
            Volume.read(path)


@given(position=st.integers(0, 347), value=st.integers(0, 255))
@example(position=111, value=95)  # voxels that start at byte 1.6e19
def test_any_damage_to_a_header_gives_an_image_or_a_line(tmp_path_factory, position, value):
    buffer = io.BytesIO()
    nib.Nifti1Image(NOISE[:3, :4, :5], np.diag([1, 2, 3, 1])).to_stream(buffer)
    path = tmp_path_factory.mktemp("damage") / "v.nii"
    path.write_bytes(with_bytes(buffer.getvalue(), position, bytes([value])))
    try:
        assert np.isfinite(Volume.read(path).array).all()
    except VolumeError as error:
        line = str(error)
    else:
        return
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def no_space(*_arguments, **_names):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("moment", ["write", "replace"])
def test_no_space_left(tmp_path, monkeypatch, moment, ending, voxels, oblique):
    path = tmp_path / f"mask{ending}"
    Volume(voxels(np.uint8), oblique).write(path)
    before = path.read_bytes()
    monkeypatch.setattr(*((nib.Nifti1Header, "write_to") if moment == "write" else (Path, "replace")), no_space)
    line = f"{path}: cannot be written: no space left on the device"
    with pytest.raises(VolumeError, match=f"^{re.escape(line)}$"):
        Volume(voxels(np.float64), oblique).write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_limit_of_the_system_on_the_file_size(tmp_path, ending, oblique):
    noise = np.random.default_rng(0).random((50, 50, 50))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(VolumeError, match=r"mask\.nii.*: cannot be written: File too large"):
            Volume(noise, oblique).write(tmp_path / f"mask{ending}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, voxels, oblique):
    def interrupted(_header, stream):
        stream.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib.Nifti1Header, "write_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Volume(voxels(np.uint8), oblique).write(tmp_path / "mask.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent/mask.nii.gz", "cannot be written: no such file or folder"),
        ("file/mask.nii.gz", "cannot be written: Not a directory"),
        ("folder.nii.gz", "cannot be written: this is a folder, not an image file"),
        ("mask.png", "a volume is written as .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd"),
        ("mask.gz", "a volume is written as .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, line, voxels, oblique):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.nii.gz").mkdir()
    path = tmp_path / name
    with pytest.raises(VolumeError, match=f"^{re.escape(f'{path}: {line}')}$"):
        Volume(voxels(np.uint8), oblique).write(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.nii.gz"]


def test_an_axis_longer_than_nifti_can_say(tmp_path):
    volume = Volume(np.zeros((40000, 1, 1), np.uint8), np.eye(4))
    with pytest.raises(VolumeError, match=r"NIfTI has no room for the shape \(40000, 1, 1\)"):
        volume.write(tmp_path / "mask.nii")
    assert list(tmp_path.iterdir()) == []
