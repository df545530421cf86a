"""The one reader and the one writer of CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sam2_3dmed.errors import DataError
from sam2_3dmed.files.structured import read_text

# A spreadsheet runs a cell that begins like this, unless an apostrophe makes it text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE | re.ASCII)


class Table(NamedTuple):
    """The content of a CSV file: the names of its columns, and its lines as number and cells by column."""

    columns: tuple[str, ...]
    lines: list[tuple[int, dict[str, str]]]


def read_csv(path: Path, columns: Sequence[str] = ()) -> Table:
    """Read a CSV file whose first line names its columns. Cells that a line lacks are empty.

    Raises:
        DataError: it cannot be read, is no CSV, lacks one of `columns`, names one twice, or a line has more cells.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [_without_mark(cell) for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: line {reader.line_num}: {error}") from None
    names = tuple(rows[0][1]) if rows else ()
    if missing := [column for column in columns if column not in names]:
        raise DataError(
            f"{path}: its first line must name the column{'s' if len(columns) > 1 else ''} {' and '.join(columns)}; "
            f"no {', '.join(missing)}"
        )
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{path}: its first line names the column {twice[0][:80]!r} twice")
    lines = []
    for number, row in rows[1:]:
        if any(row[len(names) :]):
            raise DataError(f"{path}: line {number} has {len(row)} cells, and there are {len(names)} columns")
        lines.append((number, {**dict.fromkeys(names, ""), **dict(zip(names, row, strict=False))}))
    return Table(names, lines)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; None is an empty cell. A text that a spreadsheet would run gets an apostrophe, which makes it text.

    `read_csv` takes the apostrophe away again.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_as_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def _as_text(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # csv does not quote a lone carriage return
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _without_mark(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell
