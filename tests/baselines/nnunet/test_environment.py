"""Where the environment of nnU-Net is, and what is said where it is not; test_worker.py makes a real one."""

import subprocess
from pathlib import Path

import pytest

from sam2_3dmed.baselines.nnunet import environment
from sam2_3dmed.errors import ConfigError


def test_its_place(monkeypatch):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert environment.environment_folder() == Path("/caches/sam2-3dmed/nnunet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment.environment_folder() == Path.home() / ".cache" / "sam2-3dmed" / "nnunet"
    monkeypatch.setenv(environment.VARIABLE, "/elsewhere")
    assert environment.environment_folder() == Path("/elsewhere")


def test_one_that_is_there(standin):
    assert environment.find_python() == standin / "bin" / "python"
    assert environment.installed_versions() == {"nnunetv2": "0", "torch": "0"}


def test_one_that_was_not_finished_is_none(standin):
    (standin / environment._READY).unlink()
    with pytest.raises(ConfigError, match="environment has none: sam2-3dmed baselines setup nnunet"):
        environment.find_python()
    with pytest.raises(ConfigError, match="has none"):
        environment.installed_versions()


def test_a_folder_of_something_else_stays(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("years")
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="is there, and is no environment; SAM2_3DMED_NNUNET chooses another place"):
        environment.set_up()
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_what_pip_could_not_do_is_said_and_leaves_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "made"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"made: -m pip install failed: .*No matching distribution found for nnunetv2"
    ):
        environment.set_up()
    python = tmp_path / "made" / "bin" / "python"
    assert subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
    with pytest.raises(ConfigError, match="has none"):
        environment.find_python()
