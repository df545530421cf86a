"""The house rules that a machine can check: sizes, names, pinned dependencies."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sam2_3dmed"
MODULES = sorted(SOURCE.rglob("*.py"))
FILES = sorted({*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})
TEXTS = [path for path in sorted(ROOT.glob("*.*")) if path.suffix in {".md", ".toml", ".txt", ".yaml", ".cff"}]
TEXTS += [
    ROOT / "Makefile",
    ROOT / ".ci" / "run",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / "recipes").glob("*"),
]

NO_SUCH_FILES = re.compile(r"^(utils?|common|helpers?|misc|.*_(legacy|v\d+|old|new))$")
NO_SUCH_NAMES = re.compile(r"^(frames?|videos?|imgs?|pred\d+|num_frames|.*_img)$")
# Written apart, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
SOMEONES_FOLDER = re.compile(
    r"(?<![\w.])/(" + "|".join(["ho" + "me", "ro" + "ot", "wo" + "rk", "tm" + "p", "Us" + "ers"]) + r")/\w"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_under_600_lines(path: Path) -> None:
    assert len(read(path).splitlines()) <= 600


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_under_50_lines(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(read(path))) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 >= 50}
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_are_the_fields_own(path: Path) -> None:
    assert not NO_SUCH_FILES.match(path.stem)
    nodes = list(ast.walk(ast.parse(read(path))))
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    names |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert not {name for name in names if NO_SUCH_NAMES.match(name)}


@pytest.mark.parametrize("path", [*FILES, *TEXTS], ids=name_of)
def test_nothing_unfinished_and_nobodys_folders(path: Path) -> None:
    assert not UNFINISHED.findall(read(path))
    assert not SOMEONES_FOLDER.findall(read(path))


def test_citation_has_the_version_of_the_package() -> None:
    version = re.search(r'^__version__ = "(.+)"$', read(SOURCE / "__init__.py"), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in read(ROOT / "CITATION.cff")


def normalised(requirement: str) -> str:
    """The name of a requirement as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_dependencies_are_pinned_and_torchvision_is_not_among_them() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {normalised(requirement) for requirement in wanted} - {"sam2-3dmed"}
    lines = [line for line in read(ROOT / "constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "name==version only, without local suffixes"
    pinned = {normalised(line) for line in lines}
    assert names <= pinned
    assert "torchvision" not in names | pinned
