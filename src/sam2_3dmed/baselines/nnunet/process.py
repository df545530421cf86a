"""A worker process in nnU-Net's environment that exchanges lines of JSON with this process (worker.py)."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.errors import ProcessError
from sam2_3dmed.processes.map_cases import num_processors

_PROGRAM = Path(__file__).with_name("worker.py")
_NOT_INHERITED = (
    *("PYTHONPATH", "PYTHONHOME"),
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"),
)
_SECONDS_TO_END = 10.0


class Worker:
    """A process and everything that it starts.

    Args:
        command: plan, train or predict.
        request: see the function of that name in worker.py.
        log: nnU-Net's output is appended here; none drops it.
        folders: values of nnU-Net's variables.

    Raises:
        ConfigError: there is no environment.
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
        environment["nnUNet_def_n_proc"] = str(most_processes())
        if device == "cpu":  # nnU-Net's default of twelve processes leaves no processor for the network
            environment.setdefault("nnUNet_n_proc_DA", str(max(1, num_processors() // 4)))
        self._where = f"; its output is in {log}" if log else ""
        self._output: IO[bytes] = log.open("a+b") if log else TemporaryFile()  # noqa: SIM115 - until `close`
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
        """The next line of the process.

        Raises:
            ProcessError: the line is an error, or the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "without output")
            raise ProcessError(f"nnU-Net has ended: {last} (status {status}){self._where}")
        content: dict[str, Any] = json.loads(line)
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

    def close(self) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def most_processes() -> int:
    """How many processes nnU-Net starts for work on single cases: one a processor, at most eight."""
    return min(8, num_processors())
