"""The comparison with PyTorch: its numbers, what it lets pass, and the slices it is made on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.errors import DataError, WeightsError
from sam2_3dmed.export.run import Differences, check_slices
from sam2_3dmed.run.run_folder import remember_data
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.volume import Volume

PREPROCESSING = Preprocessing("axial", (Normalisation("fixed", -100, 100),))


def differences(ours: list[float], theirs: list[float]) -> Differences:
    return Differences.between({"logits": torch.tensor(ours)}, [torch.tensor(theirs)])


def test_differences_by_hand() -> None:
    found = differences([1.0, -7.5, 2.0], [1.0, -8.0, 2.25])
    assert found.absolute == {"logits": 0.5}
    assert found.relative == {"logits": 0.5 / 8}
    assert differences([0.0], [0.0]).relative == {"logits": 0.0}
    assert differences([0.1], [0.0]).relative == {"logits": math.inf}


def test_what_passes() -> None:
    differences([1.0], [1.5]).require(0.34, "slab_3.onnx")
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: logits differs from PyTorch's by 0\.33 .* 0\.3 is allowed"):
        differences([1.0], [1.5]).require(0.3, "slab_3.onnx")
    with pytest.raises(WeightsError, match="by nan"):
        differences([math.nan], [1.5]).require(0.3, "slab_3.onnx")


def test_a_given_volume(tmp_path: Path) -> None:
    array = np.linspace(-100, 100, 4 * 5 * 6).reshape(4, 5, 6).astype(np.float32)
    Volume(array, np.eye(4)).write(tmp_path / "ct.nii.gz")
    source, slices = check_slices(tmp_path, tmp_path / "ct.nii.gz", PREPROCESSING, at_least=6)
    assert slices.shape == (6, 1, 5, 4)
    assert (source, slices.min(), slices.max()) == ("a given volume", 0, 1)
    with pytest.raises(DataError, match=r"ct\.nii\.gz: has 6 slices, and the check needs a slab of 7"):
        check_slices(tmp_path, tmp_path / "ct.nii.gz", PREPROCESSING, at_least=7)


def test_the_runs_own_data_set_if_it_is_there(tmp_path: Path, blobs: Path) -> None:
    remember_data(tmp_path, blobs)
    source, slices = check_slices(tmp_path, None, PREPROCESSING, at_least=3)
    assert (source, slices.shape) == ("the run's data set", (6, 1, 28, 24))
    assert check_slices(tmp_path, None, PREPROCESSING, at_least=8)[0] == "a phantom"


def test_else_a_phantom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two = Preprocessing("axial", PREPROCESSING.normalisation * 2)
    source, slices = check_slices(tmp_path, None, two, at_least=30)
    assert (source, slices.shape, slices.dtype) == ("a phantom", (30, 2, 96, 96), np.float32)
    assert (slices.min(), slices.max()) == (0, 1)
    remember_data(tmp_path, tmp_path / "gone")
    assert check_slices(tmp_path, None, two, at_least=2)[0] == "a phantom"
    assert "gone: no such folder" in caplog.text
