"""Tables and single figures of `measurements.yaml`, quoted in the README, benchmarks/RESULTS.md and the pages.

A page asks for a table with `<!-- measured: TABLE -->` on a line of its own, and for a figure with
`{{ TABLE.ROW.COLUMN }}`. The site fills them in when it is built. README.md and benchmarks/RESULTS.md are read without
a build, so they hold the filled text: `python docs/_ext/measurements.py` writes it, and a test compares.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
DATA = DOCS / "measurements.yaml"
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

_TABLE = re.compile(
    r"^<!-- measured: ([\w.]+) -->$(?:\n(?:(?!<!-- measured:).*\n)*?<!-- /measured -->$)?", re.MULTILINE
)
_VALUE = re.compile(r"\{\{ ?(\w+\.\w+\.\w+) ?\}\}")
_INLINE = re.compile(r"<!-- = (\w+\.\w+\.\w+) -->.*?<!-- / -->")


@dataclass(frozen=True)
class Table:
    """One measurement: what was run, where, what ran beside it, and its figures as text, digits as they were given."""

    name: str
    title: str
    part: str
    command: str
    machine: str
    beside: str
    commit: str
    date: str
    setup: str
    corner: str
    columns: dict[str, str]
    rows: dict[str, list[str]]
    """The first entry is the row's title, the others follow `columns`."""
    remarks: str

    def value(self, row: str, column: str) -> str:
        """One figure. KeyError names what does not exist."""
        if row not in self.rows:
            raise KeyError(f"{self.name} has no row {row}")
        if column not in self.columns:
            raise KeyError(f"{self.name} has no column {column}")
        return self.rows[row][1 + list(self.columns).index(column)]

    def markdown(self) -> str:
        """The figures as a table."""
        return _markdown(self.corner, self.columns, self.rows)

    def origin(self, machines: dict[str, str]) -> str:
        """Command, machine, what ran beside, date and commit, as one paragraph."""
        beside = f" Beside it: {self.beside}." if self.beside else ""
        return f"`{self.command}`\n\n{machines[self.machine]}.{beside} Measured {self.date}, commit `{self.commit}`."

    def section(self, machines: dict[str, str], level: int = 3) -> str:
        """Everything about the measurement, under a heading of that level."""
        parts = [f"{'#' * level} {self.title}", self.origin(machines), self.setup, self.markdown(), self.remarks]
        return "\n\n".join(part.strip() for part in parts if part.strip())


def _markdown(corner: str, columns: dict[str, str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns.values()], ["---"] * (1 + len(columns)), *rows.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Measurements:
    """All of `measurements.yaml`."""

    machines: dict[str, str]
    tables: dict[str, Table]
    quotes: dict[str, dict[str, Any]]
    """Tables whose cells are `TABLE.ROW.COLUMN` of others."""

    def results(self) -> str:
        """Every table with its origin, by part."""
        parts: dict[str, list[str]] = {}
        for table in self.tables.values():
            parts.setdefault(table.part, []).append(table.section(self.machines))
        return "\n\n".join(f"## {part}\n\n" + "\n\n".join(sections) for part, sections in parts.items())

    def table(self, name: str) -> Table:
        """The table of that name, or a KeyError that names it."""
        if name not in self.tables:
            raise KeyError(f"measurements.yaml has no table {name}")
        return self.tables[name]

    def figure(self, reference: str) -> str:
        """The figure that `TABLE.ROW.COLUMN` names, or a KeyError."""
        table, row, column = reference.split(".")
        return self.table(table).value(row, column)

    def _quoted(self, name: str) -> str:
        quote = self.quotes[name]
        rows = {
            row: [title, *(cell if cell == "-" else self.figure(cell) for cell in cells)]
            for row, (title, *cells) in quote["rows"].items()
        }
        return _markdown(quote["corner"], quote["columns"], rows)

    def _text(self, name: str) -> str:
        if name == "all":
            return self.results()
        if name in self.quotes:
            return self._quoted(name)
        if name.endswith(".section"):
            return self.table(name.removesuffix(".section")).section(self.machines, level=2)
        return self.table(name).markdown()

    def fill(self, text: str, *, docs: str, keep_markers: bool = False) -> str:
        """`text` with its tables and figures filled in.

        Args:
            text: of a page.
            docs: the way from the page's folder to docs/, such as `../`; pictures in the data are named from docs/.
            keep_markers: whether the result can be filled again.
        """

        def table(match: re.Match[str]) -> str:
            found = self._text(match[1]).replace("](images/", f"]({docs}images/")
            return f"<!-- measured: {match[1]} -->\n{found}\n<!-- /measured -->" if keep_markers else found

        def inline(match: re.Match[str]) -> str:
            found = self.figure(match[1])
            return f"<!-- = {match[1]} -->{found}<!-- / -->" if keep_markers else found

        text = _INLINE.sub(inline, _TABLE.sub(table, text))
        return _VALUE.sub(lambda match: self.figure(match[1]), text)


def read_measurements(path: Path = DATA) -> Measurements:
    """Read the file. Scalars stay text, so that 0.450 keeps its digits."""
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    optional = {"beside": "", "setup": "", "remarks": "", "corner": ""}
    tables = {name: Table(name, **{**optional, **entry}) for name, entry in content["tables"].items()}
    for table in tables.values():
        wrong = [row for row, cells in table.rows.items() if len(cells) != 1 + len(table.columns)]
        if wrong:
            raise ValueError(f"{table.name}: row {wrong[0]} does not have {len(table.columns)} figures and a title")
    return Measurements(content["machines"], tables, content["quotes"])


def filled_files() -> dict[Path, str]:
    """README.md and benchmarks/RESULTS.md as they must be."""
    measurements = read_measurements()
    ways = {README: "docs/", RESULTS: "../docs/"}
    texts = {file: file.read_text(encoding="utf-8") for file in ways}
    return {file: measurements.fill(text, docs=ways[file], keep_markers=True) for file, text in texts.items()}


def setup(app: Any) -> dict[str, bool]:
    """Fill every page of the site as Sphinx reads it."""
    measurements = read_measurements()

    def fill(app: Any, docname: str, source: list[str]) -> None:
        app.env.note_dependency(str(DATA), docname=docname)
        source[0] = measurements.fill(source[0], docs="../" * docname.count("/"))

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    for file, text in filled_files().items():
        if text != file.read_text(encoding="utf-8"):
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{file.relative_to(ROOT)} written\n")
