"""Headers and voxels of MetaImage files that ITK would not refuse, or would not survive."""

import numpy as np
import pytest

from sam2_3dmed import Volume
from sam2_3dmed.errors import VolumeError

pytest.importorskip("SimpleITK")
ARRAY = (np.arange(3000) * 37 % 3000).reshape(20, 15, 10).astype(np.int16)


@pytest.fixture(params=["scan.mha", "scan.mhd"])
def files(request, tmp_path):
    """The file to read and the one with its voxels, compressed."""
    path = tmp_path / request.param
    Volume(ARRAY, np.eye(4)).write(path)
    return path, next(file for file in sorted(tmp_path.iterdir(), key=lambda file: file.suffix != ".zraw"))


def test_every_flipped_bit_of_the_compressed_voxels_is_found(files):
    path, data = files
    content = data.read_bytes()
    start = content.find(b"LOCAL\n") + 6 if data == path else 0
    for place in [
        *range(start, start + 20),
        *range(start + 20, len(content), 97),
        *range(len(content) - 5, len(content)),
    ]:
        data.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(
            VolumeError, match=rf"^{path}: (the compressed data is damaged|.*truncated|.* bytes of voxels)"
        ):
            Volume.read(path)
    data.write_bytes(content)
    assert np.array_equal(Volume.read(path).array, ARRAY)


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_file_that_is_cut_short(files, cut):
    path, data = files
    data.write_bytes(data.read_bytes()[:-cut])
    with pytest.raises(VolumeError, match=rf"^{path}: the file is truncated"):
        Volume.read(path)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("NDims = 3", "NDims = 0", "this image has 0 axes"),
        ("NDims = 3", "NDims = three", "NDims of its header cannot be 'three'"),
        ("DimSize = 20 15 10", "DimSize = 20 15", "DimSize of its header cannot be '20 15'"),
        ("DimSize = 20 15 10", "DimSize = 20 15 11", "6000 bytes of voxels, but its header describes 6600"),
        ("MET_SHORT", "MET_FLOAT", "6000 bytes of voxels, but its header describes 12000"),
        ("0 0 1\nOffset", "0 1e38 1\nOffset", "TransformMatrix of its header cannot be "),
        ("ElementSpacing = 1", "ElementSpacing = nan", "ElementSpacing of its header cannot be 'nan 1 1'"),
        ("NDims = 3", "NDims = 3\nNDims = 3", "its header cannot be read: 'NDims = 3'"),
        ("NDims = 3", "NDims = 3\na line", "its header cannot be read: 'a line'"),
        ("ElementDataFile", "ElementData", "this is not a MetaImage: it has no ElementDataFile"),
    ],
)
def test_a_header_that_cannot_be_used(files, before, after, line):
    path, _ = files
    content = path.read_bytes()
    assert before.encode() in content
    path.write_bytes(content.replace(before.encode(), after.encode()))
    with pytest.raises(VolumeError) as caught:
        Volume.read(path)
    assert line in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_voxels_that_are_missing(tmp_path):
    Volume(ARRAY, np.eye(4)).write(tmp_path / "scan.mhd")
    (tmp_path / "scan.zraw").unlink()
    with pytest.raises(VolumeError, match=r"scan.mhd: its file 'scan.zraw' is missing"):
        Volume.read(tmp_path / "scan.mhd")
