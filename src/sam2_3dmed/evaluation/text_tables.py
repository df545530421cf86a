"""Tables as text: Markdown that reads well in a terminal, CSV, and LaTeX for booktabs."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "{}#$%&_"},
}


def escape_markdown(text: str) -> str:
    """Escape text for a table cell of Markdown. White space becomes single spaces."""
    escaped = re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # an underscore inside a word needs no escape


def escape_latex(text: str) -> str:
    """Escape text for LaTeX. White space becomes single spaces."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def markdown_table(lines: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Format cells as Markdown, padded to columns.

    Args:
        lines: The heading and the rows, escaped.
        left: Number of leading columns that are aligned left; the others are aligned right. None: all.
    """
    left = len(lines[0]) if left is None else left
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    sides: list[Callable[[str, int], str]] = [
        str.ljust if column < left else str.rjust for column in range(len(widths))
    ]
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    heading, *body = [
        [side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)] for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *body))


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Format rows as CSV. None becomes an empty cell."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(lines)
    return table.getvalue()


def latex_table(
    caption: str,
    columns: str,
    heading: Sequence[str],
    groups: Iterable[Iterable[Sequence[str]]],
    below: Sequence[str] = (),
) -> str:
    r"""Format escaped cells as a table for \usepackage{booktabs}.

    Args:
        caption: Text of the caption.
        columns: Argument of tabular, such as `lrr`.
        heading: Cells of the first row.
        groups: Rows of cells, with a rule before each group.
        below: Lines after the tabular.
    """
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", _latex_row(heading)]
    for group in groups:
        lines += [r"\midrule", *map(_latex_row, group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
