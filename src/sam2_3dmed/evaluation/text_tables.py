"""Tables as text: Markdown with padded columns, CSV, and LaTeX for booktabs."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "{}#$%&_"},
}


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def markdown_table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """A header and rows as a padded table. The columns from `left` on are aligned to the right; None: no column."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) if left is None else left
    rule = ["-" * width if column < words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def latex_table(
    caption: str,
    columns: str,
    header: Sequence[str],
    groups: Iterable[Sequence[Sequence[str]]],
    below: Iterable[str] = (),
) -> str:
    """A booktabs table.

    Args:
        columns: The column specification of tabular.
        groups: Groups of rows, each below a rule.
        below: Lines between the rows and the end of the table.
    """
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", _latex_row(header)]
    for rows in groups:
        lines += [r"\midrule", *map(_latex_row, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape_markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table; white space becomes single spaces."""
    escaped = re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word, an underscore is one


def escape_latex(text: str) -> str:
    """Escape text for LaTeX; white space becomes single spaces."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
