"""The inputs that once gave a wrong result, each a script that states the right value; they lie beside the test data.

They import some modules under the names of an earlier layout.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SAM2_3DMED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CASES = sorted((DATA.parent / "cases").glob("case_*.py"))
RUN = """
import importlib, runpy, sys
for old, new in {
    "sam2_3dmed.data.catalog": "sam2_3dmed.data.dataset",
    "sam2_3dmed.evaluation.matching": "sam2_3dmed.evaluation.cases",
    "sam2_3dmed.volume.dicom": "sam2_3dmed.dicom.series",
    "sam2_3dmed.volume.dicom_files": "sam2_3dmed.dicom.files",
}.items():
    sys.modules[old] = importlib.import_module(new)
sys.modules["sam2_3dmed.data.catalog"].read_catalog = sys.modules["sam2_3dmed.data.catalog"].read_dataset
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.stem if case else "none")
def test_the_right_value(case, shared_data, tmp_path):
    assert case, f"no cases at {shared_data.parent}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, case], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
