"""The manifest of a folder of masks: one line of JSON for each finished input, which a later run then passes over."""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from sam2_3dmed.errors import UserError
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.processes import journal
from sam2_3dmed.processes.atomic import write_text


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
            "outputs": journal.checksums(outputs, self.folder),
            "seconds": round(seconds, 3),
            "model": self.model,
            "version": version("sam2-3dmed"),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        name = f"manifest.{socket.gethostname()}.jsonl" if self.per_host else "manifest.jsonl"
        journal.append(self.folder / name, line)

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
        return any(journal.are_whole(line.get("outputs"), self.folder) for line in same)

    def decisive(self, item: Input) -> dict[str, Any]:
        """Everything that decides the outputs of an input, as JSON gives it back. Raises UserError if it is gone."""
        decisive = _identity(item) | {"model_checksum": self.model_checksum, "options": asdict(self)["options"]}
        return cast(dict[str, Any], json.loads(json.dumps(decisive)))

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of all manifest files, in the order in which inputs were finished in each file."""
        return [line for path in self._files() for line, _ in journal.read(path)]

    def forget(self, inputs: Sequence[Input]) -> None:
        """Remove the lines of these inputs, so that they are predicted again."""
        names = {item.name for item in inputs}
        for path in self._files():
            lines = [(str(line["name"]) in names, text) for line, text in journal.read(path)]
            if any(forgotten for forgotten, _ in lines):
                write_text(path, "".join(f"{text}\n" for forgotten, text in lines if not forgotten))

    def _files(self) -> list[Path]:
        """The manifest files of all machines."""
        return sorted(self.folder.glob("manifest*.jsonl"))


def _identity(item: Input) -> dict[str, Any]:
    """The paths of an input, and the names, sizes and modification times of its files."""
    size, digest = journal.state(item.all_files())
    paths = [str(path.resolve()) for path in item.files]
    identity = {"input": paths, "series": item.series_uid, "input_bytes": size, "input_state": digest}
    if item.reference is not None:
        identity["reference"] = str(item.reference.resolve())
    return identity
