"""Tables as text: Markdown with padded columns, and LaTeX for booktabs."""

import re
from collections.abc import Iterable, Sequence

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{letter: f"\\{letter}" for letter in "{}#$%&_"},
    }
)


def markdown_table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """A header and rows as a padded table. The columns from `left` on are aligned to the right; None: no column."""
    columns = []
    for place, (header, *cells) in enumerate(zip(*rows, strict=True)):
        width = max(3, len(header), *map(len, cells))
        if left is None or place < left:
            columns.append([cell.ljust(width) for cell in (header, "-" * width, *cells)])
        else:
            columns.append([cell.rjust(width) for cell in (header, "-" * (width - 1) + ":", *cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def latex_table(
    caption: str,
    columns: str,
    header: Sequence[str],
    groups: Iterable[Sequence[Sequence[str]]],
    below: Iterable[str] = (),
) -> str:
    """A booktabs table with groups of rows, each below a rule. below: lines before the end of the table."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
    rule = r"\toprule"
    for rows in ([header], *groups):
        lines += [rule, *(" & ".join(row) + r" \\" for row in rows)]
        rule = r"\midrule"
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"])


def escape_markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table; white space becomes single spaces."""
    escaped = re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word, an underscore is one


def escape_latex(text: str) -> str:
    """Escape text for LaTeX; white space becomes single spaces."""
    return " ".join(text.split()).translate(_LATEX)
