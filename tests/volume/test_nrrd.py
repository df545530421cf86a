"""The fields that 3D Slicer needs to show a mask as a segmentation, read back by SimpleITK."""

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.nrrd import write_segmentation_nrrd
from sam2_3dmed.volume.volume import Volume

LABELS = {1: "left kidney", 3: "tumour", 300: "spleen"}


@pytest.fixture
def mask(oblique):
    array = np.zeros((4, 5, 6), np.uint16)
    array[1:3, 2, 3:5] = 1
    array[0, 0, 0] = 300
    return Volume(array, oblique)


def header(path):
    lines = path.read_bytes().split(b"\n\n")[0].decode().splitlines()
    return dict(line.split(":=" if ":=" in line else ": ", 1) for line in lines[1:])


def test_names_values_and_extents(mask, tmp_path):
    write_segmentation_nrrd(mask, tmp_path / "a.seg.nrrd", LABELS)
    fields = header(tmp_path / "a.seg.nrrd")
    assert [fields[f"Segment{i}_Name"] for i in range(3)] == ["left kidney", "tumour", "spleen"]
    assert [fields[f"Segment{i}_LabelValue"] for i in range(3)] == ["1", "3", "300"]
    assert [fields[f"Segment{i}_Extent"] for i in range(3)] == ["1 2 2 2 3 4", "0 -1 0 -1 0 -1", "0 0 0 0 0 0"]
    colours = [[float(part) for part in fields[f"Segment{i}_Color"].split()] for i in range(3)]
    assert all(0 <= part <= 1 for colour in colours for part in colour)
    assert len({tuple(colour) for colour in colours}) == 3


def test_another_reader_finds_the_same_voxels_in_the_same_place(mask, tmp_path):
    import SimpleITK as sitk  # noqa: N813

    write_segmentation_nrrd(mask, tmp_path / "a.seg.nrrd", LABELS)
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(image).T, mask.array)
    assert image.GetMetaData("Segment0_Name") == "left kidney"
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5)):
        lps = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(np.array([-lps[0], -lps[1], lps[2]]), (mask.affine @ (*index, 1))[:3], atol=1e-4)


def test_a_name_cannot_break_the_header(mask, tmp_path):
    write_segmentation_nrrd(mask, tmp_path / "a.seg.nrrd", {1: "a\n\nb:=c"})
    assert header(tmp_path / "a.seg.nrrd")["Segment0_Name"] == "a b:=c"


def test_a_folder_that_is_not_there(mask, tmp_path):
    with pytest.raises(VolumeError, match=r"a\.seg\.nrrd: cannot be written"):
        write_segmentation_nrrd(mask, tmp_path / "gone" / "a.seg.nrrd", LABELS)
