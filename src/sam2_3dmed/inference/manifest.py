"""The manifest of a folder of masks: one line of JSON for each finished input, which a later run then passes over."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib.metadata import version
from io import BufferedRandom
from pathlib import Path
from typing import Any, cast

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.files.structured import parse_json
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.processes.atomic import naming, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """The finished inputs of a folder, and everything besides an input that decides its mask."""

    folder: Path
    model: str
    """The run folder."""
    model_checksum: str
    """The checksum of its files."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options that change a mask or its file."""
    per_host: bool = False
    """Append to a file of this machine's own: on a network file system, machines may not append to the same one."""

    def note(self, item: Input, decisive: Mapping[str, Any], outputs: Sequence[Path], seconds: float) -> None:
        """Append the line of a finished input, after removing a torn line that a killed process has left.

        decisive: what `decisive` gave before the input was read. If the input has changed since, the line is no longer
            about it, and a later run predicts it again.
        """
        line = {
            "name": item.name,
            **decisive,
            "outputs": {path.relative_to(self.folder).as_posix(): checksum([path]) for path in outputs},
            "seconds": round(seconds, 3),
            "model": self.model,
            "version": version("sam2-3dmed"),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self.folder / (f"manifest.{socket.gethostname()}.jsonl" if self.per_host else "manifest.jsonl")
        with naming(path, "cannot be written"), open(path, "a+b", opener=_not_through_a_link) as file:
            with suppress(ImportError, OSError):  # one process at a time, on systems that have locks
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file)
            file.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def finished(self, inputs: Sequence[Input]) -> list[bool]:
        """Whether the outputs of each input are whole, and were made of it as it is now by this model and its options.

        An input that is in memory is never finished. The model's checksum decides, not its folder.
        """
        by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.lines():
            by_name[str(line["name"])].append(line)
        return [bool(item.files) and self._is_finished(item, by_name[item.name]) for item in inputs]

    def _is_finished(self, item: Input, lines: Sequence[dict[str, Any]]) -> bool:
        if not lines:
            return False
        try:
            expected = self.decisive(item)
        except UserError:  # it has vanished: it fails alone when it is read
            return False
        same = (line for line in reversed(lines) if expected.items() <= line.items())
        return any(self._are_whole(line.get("outputs")) for line in same)

    def decisive(self, item: Input) -> dict[str, Any]:
        """Everything that decides the outputs of an input, as JSON gives it back. Raises UserError if it is gone."""
        decisive = _identity(item) | {"model_checksum": self.model_checksum, "options": asdict(self)["options"]}
        return cast(dict[str, Any], json.loads(json.dumps(decisive)))

    def _are_whole(self, outputs: Any) -> bool:
        """Whether there are outputs, and each still has its checksum."""
        try:
            return bool(outputs) and all(checksum([self.folder / name]) == sha for name, sha in outputs.items())
        except (DataError, AttributeError, ValueError):  # a ValueError: a name holds a null byte
            return False

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of all manifest files, in the order in which inputs were finished in each file."""
        return [line for path in self._files() for line, _ in _parsed(path)]

    def forget(self, inputs: Sequence[Input]) -> None:
        """Remove the lines of these inputs, so that they are predicted again."""
        names = {item.name for item in inputs}
        for path in self._files():
            lines = [(str(line["name"]) in names, text) for line, text in _parsed(path)]
            if any(forgotten for forgotten, _ in lines):
                write_text(path, "".join(f"{text}\n" for forgotten, text in lines if not forgotten))

    def _files(self) -> list[Path]:
        """The manifest files of all machines."""
        return sorted(self.folder.glob("manifest*.jsonl"))


def checksum(files: Sequence[Path]) -> str:
    """SHA-256 of the contents of the files. Raises DataError if one cannot be read."""
    digests = []
    for path in files:
        with naming(path, "cannot be read"), path.open("rb") as file:
            digests.append(file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()


def _identity(item: Input) -> dict[str, Any]:
    """The paths of an input, and the names, sizes and modification times of its files.

    Contents do not count: reading thousands of scans only to find that nothing is left to do would take hours.
    """
    digest, size = sha256(), 0
    for file in item.all_files():
        with naming(file, "cannot be read"):
            state = file.stat()
        size += state.st_size
        digest.update(os.fsencode(file.name) + f"\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    paths = [str(path.resolve()) for path in item.files]
    identity = {"input": paths, "series": item.series_uid, "input_bytes": size, "input_state": digest.hexdigest()}
    if item.reference is not None:
        identity["reference"] = str(item.reference.resolve())
    return identity


def _parsed(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Content and text of each whole line. The input of a torn line is predicted again."""
    with naming(path, "cannot be read"):
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for text in texts:
        try:
            line = parse_json(text, path)
        except DataError:
            continue
        if isinstance(line, dict) and "name" in line:
            yield line, text


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _cut_torn_line(file: BufferedRandom) -> None:
    """Remove a last line without an end. Its writer is dead, since it would hold the lock otherwise."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
        logger.warning("%s: its last line was torn, and is removed", file.name)
