"""The inputs that once gave a wrong result, each a script that states the right value; they lie beside the test data.

They import some modules under the names of an earlier layout, in which a split did not know of the fingerprint.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SAM2_3DMED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CASES = sorted((DATA.parent / "cases").glob("case_*.py"))
FORMER_NAMES = """
import importlib, importlib.abc, importlib.util, sys

NAMES = {
    "sam2_3dmed.data.catalog": "sam2_3dmed.data.dataset",
    "sam2_3dmed.evaluation.matching": "sam2_3dmed.evaluation.cases",
    "sam2_3dmed.volume.dicom": "sam2_3dmed.dicom.series",
    "sam2_3dmed.volume.dicom_files": "sam2_3dmed.dicom.files",
}

class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in NAMES else None

    def create_module(self, spec):
        return importlib.import_module(NAMES[spec.name])

    def exec_module(self, module):
        if hasattr(module, "read_dataset"):
            module.read_catalog = module.read_dataset
            split_by_foreground()
        if hasattr(module, "choose_series"):
            module.read_dicom = lambda *arguments: module.choose_series(*arguments).read()

def split_by_foreground():
    from sam2_3dmed.data import fingerprint, splits

    found = []
    take, split = fingerprint.fingerprint, splits.split_cases
    fingerprint.fingerprint = lambda *given, **options: found.append(take(*given, **options)) or found[-1]
    splits.split_cases = lambda *given: split(*given, foreground=found[-1].with_foreground)

sys.meta_path.insert(0, Alias())
"""


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.stem if case else "none")
def test_the_right_value(case, shared_data, tmp_path):
    assert case, f"no cases at {shared_data.parent}"
    (tmp_path / "sitecustomize.py").write_text(FORMER_NAMES)  # every Python process runs it, also a worker
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", case],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
