"""An environment that has a stand-in for nnU-Net, which itself takes minutes to install (test_worker.py has it)."""

import json
import sys
from pathlib import Path

import pytest

from sam2_3dmed.baselines.nnunet import environment


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's environment; its folder."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / environment._READY).write_text(json.dumps({"nnunetv2": "0", "torch": "0"}))
    monkeypatch.setenv(environment.VARIABLE, str(folder))
    monkeypatch.setattr(environment, "_PROGRAM", Path(__file__).with_name("standin.py"))
    return folder
