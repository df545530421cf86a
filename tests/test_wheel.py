"""The wheel, installed into an environment of its own, has everything that the demo needs."""

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sam2_3dmed"
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
LAST_LINE = re.compile(r"demo: mean_dice=\S+ min_class_dice=\S+ threshold_dice=\S+ seconds=\d+")


def call(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, env=CLEAN)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (wheel,) = folder.glob("*.whl")
    return wheel


def requirements(names: list[str]) -> set[str]:
    """The distributions that an installer would choose for some requirements, from those of this environment."""
    found: set[str] = set()
    while names:
        requirement = Requirement(names.pop())
        key = f"{requirement.name}[{','.join(sorted(requirement.extras))}]"
        extras = [{"extra": extra} for extra in ("", *requirement.extras)]
        if key in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(key)
        for line in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                needed.marker = None
                names.append(str(needed))
    return {key.partition("[")[0] for key in found}


def make_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel and its dependencies, which are linked instead of downloaded.

    Returns: its folder of programs.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    wanted = [
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    for name in requirements(wanted):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            source, link = Path(str(distribution.locate_file(top))), packages / top
            if source.exists() and not link.exists():
                link.symlink_to(source)
    call(
        folder / "bin" / "python", "-m", "pip", "install", "--no-index", "--find-links", wheel.parent, wheel, env=CLEAN
    )
    return folder / "bin"


@pytest.mark.long
def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    programs = make_environment(tmp_path / "environment", wheel)
    where = call(programs / "python", "-c", "import sam2_3dmed as s; print(s.__file__)", cwd=tmp_path, env=CLEAN)
    assert where.startswith(str(tmp_path / "environment"))
    call(programs / "python", "-m", "pip", "check", env=CLEAN)
    last = call(programs / "sam2-3dmed", "demo", "--minutes", "0.2", cwd=tmp_path, env=CLEAN).splitlines()[-1]
    assert LAST_LINE.fullmatch(last)
    assert "phantom_" in (tmp_path / "demo" / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = {path.relative_to(SOURCE.parent).as_posix() for path in SOURCE.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in files if "__pycache__" not in name} <= names
    assert {name.partition("/")[0] for name in names} == {"sam2_3dmed", wheel.name.partition("-py3")[0] + ".dist-info"}
