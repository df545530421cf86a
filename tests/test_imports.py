"""The light parts stay light; `lint-imports` checks who may import whom."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["volume.nifti", "volume.slices", "volume.preprocess", "errors"])
def test_light_parts_do_not_import_torch(module: str) -> None:
    code = f"import sys, sam2_3dmed.{module}; print(*{{'torch', 'transformers', 'lightning'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
