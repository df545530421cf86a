"""A worker process in nnU-Net's environment, to which lines of JSON go and from which they come (worker.py)."""

import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.errors import ProcessError
from sam2_3dmed.processes.map_cases import num_processors

_PROGRAM = Path(__file__).with_name("worker.py")
_NOT_INHERITED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "nnUNet_extTrainer",
)
_SECONDS_TO_END = 10.0


class Worker:
    """A process that is started with what it is told, and ended with all that it has started.

    command: plan, train or predict; told: see there; log: what nnU-Net prints is appended here, none: it is not kept;
    folders: values of nnU-Net's variables.

    Raises: ConfigError without an environment.
    """

    def __init__(
        self,
        command: str,
        told: Mapping[str, Any],
        log: Path | None = None,
        *,
        folders: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment |= {name: str(folder.resolve()) for name, folder in (folders or {}).items()}
        environment |= {"nnUNet_def_n_proc": str(most_processes())}
        if device == "cpu":  # nnU-Net takes twelve processes to augment, which leave the network nothing
            environment.setdefault("nnUNet_n_proc_DA", str(max(1, num_processors() // 4)))
        self._where = f"; all that it said is in {log}" if log else ""
        self._said: IO[bytes] = log.open("a+b") if log else TemporaryFile()  # noqa: SIM115 - until `close`
        self._process = subprocess.Popen(
            [find_python(), _PROGRAM, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that its own processes end with it
        )
        self.say(told)

    def say(self, content: Mapping[str, Any]) -> None:
        """A line to the process; if it has ended, `answer` says why."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line from it.

        Raises: ProcessError if it says that something is wrong, or has ended without a word.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProcessError(f"nnU-Net has ended: {self._last_words()}{self._where}")
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            raise ProcessError(str(content["error"]))
        return content

    def answers(self) -> Iterator[dict[str, Any]]:
        """Lines up to and with the one that says `done`. Raises: as `answer`."""
        while True:
            content = self.answer()
            yield content
            if content.get("done"):
                return

    def close(self) -> None:
        """End it, and what it has started."""
        for stream in (self._process.stdin, self._process.stdout, self._said):
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._said.seek(0)
        lines = deque((line.strip() for line in self._said if line.strip()), maxlen=1)
        return f"{lines[0].decode(errors='replace') if lines else 'without a word'} (status {status})"


def most_processes() -> int:
    """That nnU-Net starts for what it does case by case: as many as there are processors, at most eight."""
    return min(8, num_processors())
