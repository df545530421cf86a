"""README, CONTRIBUTING and the manual name what exists: commands, options, recipe keys, Python names, files, links."""

import ast
import importlib
import json
import re
import shlex
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from code_reference import commands_markdown
from measurements import read_measurements

from sam2_3dmed.cli.main import app
from sam2_3dmed.config import RunConfig, read_recipe, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import OURS, find_system

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "sam2_3dmed"
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
]
FENCE = re.compile(r"^```[ ]*(\w+)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
SECTIONS = {name for name, field in RunConfig.model_fields.items() if hasattr(field.annotation, "model_fields")}
KEY = re.compile(rf"((?:{'|'.join(sorted(SECTIONS))})\.(?!json|safetensors|csv|md|py|html)\w+)(=.*)?")
# Their keys are those of other systems' recipes.
OTHER_RECIPES = {"other_systems.md"}
# No link is fetched; a new host is a decision.
HOSTS = {"github.com", "keepachangelog.com", "semver.org", "arxiv.org"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(text) if language.lower() in languages]


def spans(path: Path) -> list[str]:
    """The inline code of a page."""
    return CODE.findall(FENCE.sub("", read(path)))


def shell_commands(code: str) -> list[list[str]]:
    """The words of each command of a shell block, without prompts, comments and variables set before it."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("&|;()<>"):
                found.append(command)
                command = []
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)
    return [command for command in found if command]


def commands_in(text: str) -> list[list[str]]:
    return [c for code in blocks(text, "bash", "sh", "shell", "console") for c in shell_commands(code)]


@cache
def options_of(command: tuple[str, ...]) -> set[str]:
    """The options of `sam2-3dmed COMMAND`; an AssertionError if there is none."""
    found: Any = typer.main.get_command(app)
    for word in command:
        assert word in found.commands, f"no such command: {' '.join(command)}"
        found = found.commands[word]
    return {option for p in found.params for option in [*p.opts, *p.secondary_opts]} | {"--help", "-h"}


def check_settings(words: list[str]) -> None:
    """The keys and values after `--set` are those of a recipe."""
    given = dict(pair for pair in pairwise(words) if pair[0] in ("--recipe", "--weights", "--system"))
    settings = [after for word, after in pairwise(words) if word == "--set"]
    if words[0] == "predict":
        assert all(setting.startswith("inference.") for setting in settings)
    system, name = find_system(given.get("--system", OURS)), given.get("--recipe", "auto")
    if not name.endswith(".yaml"):
        system.recipe(name, settings, from_scratch=given.get("--weights") == "none")


def check_command(command: list[str]) -> None:
    program, *words = command
    if Path(program).name == "make":
        targets = [word for word in words if not word.startswith("-") and "=" not in word]
        assert set(targets) <= TARGETS, f"no such target: {' '.join(command)}"
    elif "sam2-3dmed" in (Path(word).name for word in command):
        words = command[[Path(word).name for word in command].index("sam2-3dmed") + 1 :]
        if not words or words[0].startswith("-"):
            return
        options = options_of(tuple(words[:2]) if words[0] == "baselines" else (words[0],))
        given = [word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
        assert set(given) <= options, f"no such option {set(given) - options}: {' '.join(command)}"
        check_settings(words)


COMMANDS = [(page, command) for page in PAGES for command in commands_in(read(page))]
COMMANDS += [(DOCS / "reference" / "commands.md", command) for command in commands_in(commands_markdown())]
COMMANDS += [
    (DOCS / "measurements.yaml", command)
    for table in read_measurements().tables.values()
    if table.command.startswith("sam2-3dmed ")
    for command in shell_commands(table.command)
]


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=lambda part: name_of(part) if isinstance(part, Path) else ""
)
def test_shell_blocks_name_what_exists(page: Path, command: list[str]) -> None:
    check_command(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for code in blocks(read(page), "python", "py"):
        for node in ast.walk(compile(code, str(page), "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sam2_3dmed"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_data_can_be_read(page: Path) -> None:
    for code in blocks(read(page), "json"):
        json.loads(code)
    for code in blocks(read(page), "toml"):
        tomllib.loads(code)
    for code in blocks(read(page), "yaml"):
        yaml.safe_load(code)


def test_the_recipe_file_of_the_reference_is_one(tmp_path: Path) -> None:
    (code,) = blocks(read(DOCS / "reference" / "recipe.md"), "yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(code, encoding="utf-8")
    assert read_recipe(str(file)).training.batch_size == 2


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHER_RECIPES], ids=name_of)
def test_recipe_keys_exist(page: Path) -> None:
    wrong = []
    for key, value in (match.groups() for match in map(KEY.fullmatch, spans(page)) if match):
        section, name = key.split(".")
        if name not in RunConfig.model_fields[section].annotation.model_fields:
            wrong.append(key)
        elif value and "=N" not in value:
            with_settings(read_recipe("auto", from_scratch=True), [key + value])
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_source_files_exist(page: Path) -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir()} | {"src", "tests", "benchmarks", "docs"}
    named = [span for span in spans(page) if re.fullmatch(r"[\w./-]+/(\w+\.(py|md|yaml))?", span)]
    named = [span for span in named if span.split("/")[0] in folders]
    assert [span for span in named if not ((SOURCE / span).exists() or (ROOT / span).exists())] == []


def test_symbols_of_the_papers_equations_are_in_their_files() -> None:
    table = read(DOCS / "explanation" / "readings.md").split("## Sections and equations")[1].split("## Our readings")[0]
    missing = []
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) != 6:
            continue
        files = [SOURCE / file for file in CODE.findall(cells[3])]
        text = "\n".join(read(file) for file in files if file.is_file())
        names = [name for name in CODE.findall(cells[4].split(";")[0].split(":")[0]) if re.fullmatch(r"\w+", name)]
        names = names if text else []
        missing += [name for name in names if not re.search(rf"(def|class) {name}\b|^{name}\b", text, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", read(page))
    local = [a or b for a, b in links if not re.match(r"[a-z]+:|#", a or b)]
    assert [link for link in local if not (ROOT / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_external_links_lead_to_known_hosts(page: Path) -> None:
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\s)>]+", read(page))} <= HOSTS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_closed(page: Path) -> None:
    assert len(re.findall(r"^\s*```", read(page), re.MULTILINE)) % 2 == 0


def test_no_clinical_use_is_said_on_the_first_pages() -> None:
    assert all("Not for clinical use" in read(page) for page in (ROOT / "README.md", DOCS / "index.md"))


def test_the_reader_of_shell_blocks() -> None:
    block = (
        "$ make PYTHON=python3.12 demo  # minutes\nA=1 sam2-3dmed predict ct.nii.gz \\\n  -o out && ls | wc -l\n\n# no"
    )
    commands = [["make", "PYTHON=python3.12", "demo"], ["sam2-3dmed", "predict", "ct.nii.gz", "-o", "out"]]
    assert shell_commands(block) == [*commands, ["ls"], ["wc", "-l"]]


@pytest.mark.parametrize(
    "command",
    [
        "make dmo",
        "sam2-3dmed prdict ct.nii.gz",
        "sam2-3dmed predict ct.nii.gz --modle m",
        "sam2-3dmed train data --set training.batch_sise=2",
        "srun sam2-3dmed train data --rsume",
    ],
    ids=str,
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, ConfigError), match=r"no such (target|command|option)|batch_sise"):
        check_command(command.split())


def test_pages_that_the_code_names_exist() -> None:
    files = [file for folder in ("src", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    named = {
        (name_of(file), page) for file in files for page in re.findall(r"\bdocs/[\w/]+\.(?:md|yaml)\b", read(file))
    }
    assert [where for where in sorted(named) if not (ROOT / where[1]).exists()] == []


@pytest.mark.parametrize(("page", "home"), [("dicom.md", "tests/dicom"), ("data_layouts.md", "tests/volume")])
def test_the_tests_that_a_table_names_are_there(page: str, home: str) -> None:
    """`FILE::NAME` in that folder or by its path; a name alone is of `test_placement.py`."""
    text = (ROOT / "docs/reference" / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(\w+)(?:::(\w+))?)?`", text)
    named += [("test_placement.py", name, "") for name in re.findall(r"`(test_\w+)`", text)]
    assert len(named) > 8
    for file, *names in named:
        code = (ROOT / (file if file.startswith("tests/") else f"{home}/{file}")).read_text(encoding="utf-8")
        lost = [name for name in names if name and not re.search(rf"^\s*((def|class) )?{name}\b", code, re.MULTILINE)]
        assert not lost, f"{page}: {file} has no {lost}"
