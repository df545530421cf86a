"""nnU-Net's own environment: it needs packages that cannot stand beside ours. A worker process in it runs worker.py."""

import json
import logging
import os
import signal
import subprocess
import venv
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, Self

from sam2_3dmed.errors import ConfigError, ProcessError
from sam2_3dmed.files.structured import parse_json, read_object
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import num_processors

VARIABLE = "SAM2_3DMED_NNUNET"
"""The environment variable with the folder."""
PACKAGES = ("nnunetv2==2.8.1", "safetensors", "setuptools<81")
"""nnU-Net imports distutils, which newer Pythons have only through setuptools."""
_READY = "sam2_3dmed.json"
_PYTHON = "bin/python"
_SHOWN_LINES = 5
_PROGRAM = Path(__file__).with_name("worker.py")
_NOT_INHERITED = (
    *("PYTHONPATH", "PYTHONHOME"),
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"),
)
_SECONDS_TO_END = 10.0

logger = logging.getLogger(__name__)


def environment_folder() -> Path:
    """The folder of the environment: SAM2_3DMED_NNUNET, else in the user's cache."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam2-3dmed" / "nnunet"


def find_python() -> Path:
    """The interpreter of the environment; a ConfigError if `set_up` has not made it."""
    folder = environment_folder()
    if not (folder / _READY).is_file():
        raise ConfigError(
            f"nnunet needs an environment of its own, and {folder} has none: sam2-3dmed baselines setup nnunet"
        )
    return folder / _PYTHON


def installed_versions() -> dict[str, str]:
    """The versions of nnU-Net and torch. Raises: as `find_python`."""
    find_python()
    return {name: str(found) for name, found in read_object(environment_folder() / _READY, ConfigError).items()}


def set_up() -> Path:
    """Make the environment with this Python and our version of torch, and replace an earlier one.

    It takes minutes and gigabytes. pip's own configuration and variables apply.

    Raises: ConfigError if pip fails, or the folder holds something else.
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


class Worker:
    """A process and everything that it starts.

    Args:
        command, request: plan, train or predict; see the function of that name in worker.py.
        log: nnU-Net's output is appended here; none drops it.
        folders: values of nnU-Net's variables.
    """

    def __init__(
        self,
        command: str,
        request: Mapping[str, Any],
        log: Path | None = None,
        *,
        folders: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment |= {name: str(folder.resolve()) for name, folder in (folders or {}).items()}
        environment["nnUNet_def_n_proc"] = str(min(8, num_processors()))
        if device == "cpu":  # nnU-Net's default of twelve processes leaves no processor for the network
            environment.setdefault("nnUNet_n_proc_DA", str(max(1, num_processors() // 4)))
        self._where = f"; its output is in {log}" if log else ""
        self._output: IO[bytes] = log.open("a+b") if log else TemporaryFile()  # noqa: SIM115 - until the end
        self._process = subprocess.Popen(
            [find_python(), _PROGRAM, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # its own processes must end with it
        )
        self.send(request)

    def send(self, content: Mapping[str, Any]) -> None:
        """Send a line; if the process has ended, `answer` raises the reason."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line of the process; a ProcessError if it is an error, or the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "without output")
            raise ProcessError(f"nnU-Net has ended: {last} (status {status}){self._where}")
        content: dict[str, Any] = parse_json(line, "nnU-Net's answer", ProcessError)
        if "error" in content:
            raise ProcessError(str(content["error"]))
        return content

    def answers(self) -> Iterator[dict[str, Any]]:
        """All lines up to the one with `done`. Raises: as `answer`."""
        done = False
        while not done:
            content = self.answer()
            done = content.get("done", False)
            yield content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process and everything that it has started."""
        for stream in (self._process.stdin, self._process.stdout, self._output):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END)
