"""Tiny data sets made on the fly."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_3dmed.volume.volume import Volume

WriteMsd = Callable[..., Path]


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(array, np.eye(4) if affine is None else affine).write(path)
    return path


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write an array as NIfTI, by default with an identity affine (RAS, 1 mm)."""
    return write_volume


@pytest.fixture
def write_msd(tmp_path: Path) -> WriteMsd:
    """Write arrays as a data set in MSD layout: {name: (image, label)}."""

    def write_cases(
        cases: Mapping[str, Sequence[np.ndarray]],
        *,
        affine: np.ndarray | None = None,
        modality: str = "MRI",
        labels: Mapping[str, Any] | None = None,
    ) -> Path:
        root = tmp_path / "Task01_Tiny"
        entries = []
        for name, (image, label) in cases.items():
            write_volume(root / "imagesTr" / f"{name}.nii.gz", image, affine)
            write_volume(root / "labelsTr" / f"{name}.nii.gz", label, affine)
            entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
        content = {
            "name": "Tiny",
            "modality": {"0": modality},
            "labels": dict(labels or {"0": "background", "1": "liver", "2": "tumour"}),
            "training": entries,
        }
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return write_cases
