"""The reference pages follow from the code: every command, option and recipe key is on them, with its meaning."""

import pytest
import typer
from code_reference import commands_markdown, recipe_markdown
from pydantic import BaseModel

from sam2_3dmed.cli.main import app
from sam2_3dmed.config import RunConfig


@pytest.fixture(scope="module")
def commands() -> str:
    return commands_markdown()


@pytest.fixture(scope="module")
def recipe() -> str:
    return recipe_markdown()


def test_every_option_of_every_command_is_there(commands: str) -> None:
    for name, command in typer.main.get_command(app).commands.items():
        if hasattr(command, "commands"):
            continue
        (section,) = [part for part in f"\n{commands}".split("\n## ") if part.startswith(f"{name}\n")]
        assert [
            option
            for p in command.params
            for option in p.opts
            if p.param_type_name == "option"
            if f"`{option}`" not in section
        ] == []
        assert command.help.splitlines()[0] in section


def test_examples_are_shell_blocks(commands: str) -> None:
    assert "```bash\nsam2-3dmed evaluate masks labelsTs -o scores\n" in commands


def test_choices_and_defaults_are_there(commands: str) -> None:
    assert "| `--surface` `surfel\\|voxel` | `surfel` |" in commands
    assert "| `--model`, `-m` `PATH` | required |" in commands


def test_every_recipe_key_is_there(recipe: str) -> None:
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            assert [key for key in section.model_fields if f"| `{name}.{key}` |" not in recipe] == []
        else:
            assert f"| `{name}` |" in recipe


def test_docstrings_are_the_meanings(recipe: str) -> None:
    (line,) = [line for line in recipe.splitlines() if line.startswith("| `training.batch_size` |")]
    assert line.startswith("| `training.batch_size` | whole number, at least 1 | `4` | ")
    assert line.removesuffix(" |").rsplit("| ", 1)[1].strip()


def test_values_are_written_as_yaml(recipe: str) -> None:
    assert "| `model.srpp` | `true`, `false` | `true` |" in recipe
    assert "or `none` | `none` |" in recipe


def test_every_recipe_key_has_a_meaning(recipe: str) -> None:
    keys = [line.removesuffix(" |") for line in recipe.splitlines() if line.startswith("| `")]
    assert [key for key in keys if key.endswith("|") or not key.rsplit("| ", 1)[1].strip()] == []
