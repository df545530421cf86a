"""The light parts stay light; `lint-imports` checks who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["volume.nifti", "volume.slices", "volume.preprocess", "errors"])
def test_light_parts_do_not_import_torch(module: str) -> None:
    code = f"import sys, sam2_3dmed.{module}; print(*{{'torch', 'transformers', 'lightning'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


def test_prediction_imports_nothing_of_training(blob_run: Path) -> None:
    code = f"import sys, sam2_3dmed; sam2_3dmed.load_model({str(blob_run)!r}); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert "sam2_3dmed.inference.predictor" in loaded
    assert not {name for name in loaded if name.startswith(("lightning.", "sam2_3dmed.training", "matplotlib."))}
