"""nnU-Net's own environment: it needs packages that cannot be installed beside ours."""

import json
import logging
import os
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.processes.atomic import write_text

VARIABLE = "SAM2_3DMED_NNUNET"
"""The environment variable with the folder."""
PACKAGES = ("nnunetv2==2.8.1", "safetensors", "setuptools<81")
"""nnU-Net imports distutils, which newer Pythons have only through setuptools."""
_READY = "sam2_3dmed.json"
_PYTHON = "bin/python"
_SHOWN_LINES = 5

logger = logging.getLogger(__name__)


def environment_folder() -> Path:
    """The folder of the environment: SAM2_3DMED_NNUNET, else in the user's cache."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam2-3dmed" / "nnunet"


def find_python() -> Path:
    """The interpreter of the environment.

    Raises:
        ConfigError: `set_up` has not made it.
    """
    folder = environment_folder()
    if not (folder / _READY).is_file():
        raise ConfigError(
            f"nnunet needs an environment of its own, and {folder} has none: sam2-3dmed baselines setup nnunet"
        )
    return folder / _PYTHON


def installed_versions() -> dict[str, str]:
    """The versions of nnU-Net and torch. Raises: as `find_python`."""
    find_python()
    content: dict[str, str] = json.loads((environment_folder() / _READY).read_text(encoding="utf-8"))
    return content


def set_up() -> Path:
    """Make the environment with this Python and our version of torch, and replace an earlier one.

    It takes minutes and gigabytes. pip's own configuration and variables apply.

    Returns:
        Its folder.

    Raises:
        ConfigError: pip fails, or the folder holds something else.
    """
    folder = environment_folder()
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise ConfigError(f"{folder}: is there, and is no environment; {VARIABLE} chooses another place")
    (folder / _READY).unlink(missing_ok=True)
    try:
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{folder}: no environment can be made: {error}") from None
    torch = ".".join(version("torch").split("+")[0].split(".")[:2])
    logger.info("installing %s with torch %s into %s", PACKAGES[0], torch, folder)
    with TemporaryDirectory() as temporary:
        constraints = Path(temporary) / "constraints.txt"
        constraints.write_text(f"torch=={torch}.*\n", encoding="utf-8")
        _run(folder, "-m", "pip", "install", "--quiet", "-c", str(constraints), *PACKAGES)
    script = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('nnunetv2', 'torch')}))"
    found = _run(folder, "-c", f"import nnunetv2.training.nnUNetTrainer.nnUNetTrainer; {script}")
    write_text(folder / _READY, found.splitlines()[-1] + "\n")
    return folder


def _run(folder: Path, *arguments: str) -> str:
    """The output of the environment's Python."""
    done = subprocess.run([folder / _PYTHON, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise ConfigError(f"{folder}: {' '.join(arguments[:3])} failed: {last}")
    return done.stdout
