"""`baselines setup`, as far as it goes without installing anything; test_worker.py goes the whole way."""

import pytest
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.errors import ConfigError


def test_a_system_that_needs_no_environment():
    with pytest.raises(ConfigError, match=r"^unet needs no environment; the only system that does is nnunet$"):
        CliRunner().invoke(app, ["baselines", "setup", "unet"], catch_exceptions=False)


def test_help_says_what_it_makes():
    output = CliRunner().invoke(app, ["baselines", "setup", "--help"]).output
    assert "environment" in output
    assert "nnunet" in output
