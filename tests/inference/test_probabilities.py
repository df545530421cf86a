"""Probabilities of each class as files."""

import numpy as np
import pytest
import torch

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.logits_to_mask import probability_files, writing_probabilities
from sam2_3dmed.volume.slices import SliceWriter
from sam2_3dmed.volume.volume import Volume

GRID = Volume(np.zeros((8, 6, 20), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]))
LABELS = {1: "left kidney", 5: "tumour"}


def write(prefix, indices):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 2, 3, 4, generator=generator)
    with writing_probabilities(prefix, LABELS, GRID, "axial") as write:
        for index in indices:
            write(index, logits[index])
    return logits


@pytest.mark.parametrize("order", [range(20), range(20)[::-1]])
def test_files_hold_what_the_network_said(tmp_path, order):
    logits = write(tmp_path / "new" / "case", order)
    resized = torch.nn.functional.interpolate(logits, (6, 8), mode="bilinear", align_corners=False)
    for k, name in enumerate(("left_kidney", "tumour")):
        found = Volume.read(tmp_path / "new" / f"case_{name}.nii.gz")
        expected = resized[:, k].sigmoid().numpy().transpose(2, 1, 0)[::-1, ::-1]
        np.testing.assert_allclose(found.array, expected, atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(found.affine, GRID.affine)


def test_an_unfinished_case_leaves_no_files(tmp_path):
    with pytest.raises(VolumeError, match="not every slice was written"):
        write(tmp_path / "case", range(5))
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_the_thread_is_told(tmp_path, monkeypatch):
    def refuse(self, index, plane):
        raise VolumeError("no room")

    monkeypatch.setattr(SliceWriter, "write", refuse)
    with pytest.raises(VolumeError, match="no room"):
        write(tmp_path / "case", range(20))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: cannot be made"):
        write(tmp_path / "file" / "case", range(20))


def test_names_of_classes_become_names_of_files(tmp_path):
    labels = {1: "left kidney", 2: "a/b", 3: "a b", 7: "A B", 8: "GTV-1+2"}
    names = {value: file.name for value, file in probability_files(tmp_path / "c.1", labels).items()}
    assert names == {
        1: "c.1_left_kidney.nii.gz",
        2: "c.1_a_b_2.nii.gz",
        3: "c.1_a_b_3.nii.gz",
        7: "c.1_A_B_7.nii.gz",
        8: "c.1_GTV-1+2.nii.gz",
    }
