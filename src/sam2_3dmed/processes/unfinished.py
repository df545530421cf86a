"""A folder that is made piece by piece: it is refused until it is whole, and a killed call can be called again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes import journal
from sam2_3dmed.processes.lock import LOCK_FILE, locked

JOURNAL = ".unfinished.jsonl"
"""It is there as long as the folder is not whole."""


@dataclass(frozen=True)
class UnfinishedFolder:
    """The pieces of a folder that are whole."""

    folder: Path

    def has(self, name: str, made_of: str) -> bool:
        """Whether a piece is there whole, and was made of the same."""
        lines = [line for line in self._lines() if line["name"] == name][-1:]
        return any(line.get("made_of") == made_of and journal.are_whole(line["outputs"], self.folder) for line in lines)

    def plan(self, name: str, outputs: Sequence[Path]) -> None:
        """A piece is about to be written, so that a later call can remove what is left of it."""
        files = {str(output.relative_to(self.folder)): "" for output in outputs}
        journal.append(self.folder / JOURNAL, {"name": name, "made_of": None, "outputs": files})

    def note(self, name: str, made_of: str, outputs: Sequence[Path]) -> None:
        """A piece is whole."""
        line = {"name": name, "made_of": made_of, "outputs": journal.checksums(outputs, self.folder)}
        journal.append(self.folder / JOURNAL, line)

    def remove_all_but(self, names: Sequence[str]) -> None:
        """Remove the files of other pieces, which an earlier call has made of something else."""
        kept = {output for line in self._lines() if line["name"] in names for output in line["outputs"]}
        for output in {output for line in self._lines() for output in line["outputs"]} - kept:
            file = (self.folder / output).resolve()
            if file.is_relative_to(self.folder.resolve()) and file.is_file():  # the journal may be of somebody else
                file.unlink()

    def _lines(self) -> list[dict[str, Any]]:
        found = (line for line, _ in journal.read(self.folder / JOURNAL))
        return [line for line in found if isinstance(line.get("outputs"), dict)]


@contextmanager
def making(folder: Path) -> Iterator[UnfinishedFolder]:
    """Keep a folder for the body: a new or empty one, or one that another call has not finished.

    The folder is whole when the body ends. If the body raises, the folder stays unfinished.

    Raises:
        DataError: another process works in it, or something else is in it.
    """
    with locked(folder):
        file = folder / JOURNAL
        if not file.exists() and _content(folder):
            raise DataError(f"{folder}: exists and is not an empty folder")
        file.touch()
        try:
            yield UnfinishedFolder(folder)
        except BaseException:
            if _content(folder) == {JOURNAL}:
                file.unlink()
            raise
        file.unlink()


def require_finished(folder: Path) -> None:
    """Raise DataError for a folder that another call has not finished."""
    if (folder / JOURNAL).exists():
        raise DataError(f"{folder}: is not whole; make it whole with the command that began it, or wait for its end")


def _content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK_FILE}
