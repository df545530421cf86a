"""The command line of `reproduce`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.errors import ConfigError, DataError


def call(*arguments: str | Path):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_a_dry_run_lists_the_runs(blobs: Path, tmp_path: Path):
    result = call(4, "--data", blobs, "--weights", "none", "--minutes", 5, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines()[:2]] == ["without_srpp", "full"]
    assert "2 runs; what is left takes about 0.2 hours" in result.stdout


def test_names_with_commas_or_repeated(blobs: Path, tmp_path: Path):
    common = (4, "--data", blobs.parent, "--tasks", blobs.name, "--weights", "none", "-o", tmp_path, "--dry-run")
    one = call(*common, "--methods", "full,sam2")
    other = call(*common, "--methods", "full", "--methods", "sam2")
    assert one.stdout == other.stdout
    assert "sam2" in one.stdout


def test_mistakes_are_lines(blobs: Path, tmp_path: Path):
    assert isinstance(call(1, "--data", tmp_path / "gone", "--dry-run").exception, DataError)
    both = call(1, "--data", blobs, "--minutes", 1, "--epochs", 1, "--dry-run", "-o", tmp_path)
    assert isinstance(both.exception, ConfigError)
    assert call(10, "--data", blobs).exit_code == 2


def test_failed_runs_are_told_at_the_end(blobs: Path, tmp_path: Path):
    missing = tmp_path / "no.pt"
    result = call(4, "--data", blobs, "--weights", missing, "--methods", "full", "-o", tmp_path / "out", "--epochs", 1)
    assert result.exit_code == 1
    assert "1 failed:" in result.stderr
    assert "no.pt" in result.stderr
    assert "Table 4" in result.stdout


@pytest.mark.parametrize("word", ["--dry-run", "--set-patches", "--methods"])
def test_help_names_its_options(word: str):
    assert word in CliRunner().invoke(app, ["reproduce", "--help"], env={"COLUMNS": "200"}).stdout
