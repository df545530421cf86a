"""What README.md tells a user to type exists: commands, options, make targets, Python names, linked files."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```[ ]*(\w+)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def blocks(text: str, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(text) if language.lower() in languages]


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


COMMANDS = [c for code in blocks(README, "bash", "sh", "shell", "console") for c in shell_commands(code)]


@cache
def help_of(command: str) -> str:
    """What `sam2-3dmed COMMAND --help` prints."""
    wide = os.environ | {"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "sam2_3dmed", command, "--help"]
    answer = subprocess.run(call, capture_output=True, text=True, env=wide, check=False)
    assert answer.returncode == 0, f"sam2-3dmed {command} --help: {answer.stderr}"
    return answer.stdout


def check_command(command: list[str]) -> None:
    program, *words = command
    if Path(program).name == "make":
        targets = [word for word in words if not word.startswith("-") and "=" not in word]
        assert set(targets) <= TARGETS, f"no such target: {' '.join(command)}"
    elif Path(program).name == "sam2-3dmed" and words and not words[0].startswith("-"):
        shown = help_of(words[0])
        for option in (word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), f"no such option {option}: {' '.join(command)}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_shell_blocks_name_what_exists(command: list[str]) -> None:
    check_command(command)


@pytest.mark.parametrize("code", blocks(README, "python", "py"))
def test_python_blocks_compile_and_import_what_exists(code: str) -> None:
    tree = compile(code, "README.md", "exec", ast.PyCF_ONLY_AST)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sam2_3dmed"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", README)
    local = [a or b for a, b in links if not re.match(r"[a-z]+:|#", a or b)]
    assert [link for link in local if not (ROOT / link.split("#")[0]).exists()] == []


def test_every_fence_is_closed() -> None:
    assert README.count("```") % 2 == 0


def test_the_reader_of_shell_blocks() -> None:
    block = (
        "$ make PYTHON=python3.12 demo  # minutes\nA=1 sam2-3dmed predict ct.nii.gz \\\n  -o out && ls | wc -l\n\n# no"
    )
    commands = [["make", "PYTHON=python3.12", "demo"], ["sam2-3dmed", "predict", "ct.nii.gz", "-o", "out"]]
    assert shell_commands(block) == [*commands, ["ls"], ["wc", "-l"]]


@pytest.mark.parametrize(
    "command", ["make dmo", "sam2-3dmed prdict ct.nii.gz", "sam2-3dmed predict ct.nii.gz --modle m"], ids=str
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises(AssertionError, match=r"no such target|--help|no such option"):
        check_command(command.split())
