"""A table as Markdown, CSV and LaTeX. Each cell has the reported value, the measured value and their difference."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from sam2_3dmed.evaluation.statistics import ALPHA, LEVEL, RESAMPLES
from sam2_3dmed.evaluation.text_tables import csv_text, escape_latex, escape_markdown, latex_table, markdown_table
from sam2_3dmed.experiments.paper import METRICS, PaperTable
from sam2_3dmed.experiments.results import COSTS, Cell, TaskRow, TaskTable

_HEADINGS = {"dice": "Dice ↑", "iou": "IoU ↑", "hd95": "HD95 ↓", "nsd": "NSD ↑"}
_KINDS = ("reported", "measured", "difference")
_LATEX_MARKUP = (r"\textbf{{{}}}", "$^{*}$", r" {{\small [{}, {}]}}")
_LATEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_ALWAYS_SHOWN = 6  # of the costs; the others only where they are known
_CSV_HEADING = [
    *("table", "task", "method", "row", "metric", "column", "cases", "seeds"),
    *("reported", "measured", "low", "high", "seed_std", "difference", "best", "reported_best"),
    *("minus_full", "full_low", "full_high", "p", "p_holm", "significant", "note"),
]


def markdown(paper: PaperTable, tables: Sequence[TaskTable], charts: Mapping[str, str] | None = None) -> str:
    """Format all data sets of a table, with a legend. charts: data set -> file of its chart of accuracy and cost."""
    parts = [f"# Table {paper.number}: {paper.title}", _legend()]
    for table in tables:
        name = escape_markdown(table.task.name)
        parts += [f"## {name}", _caption(table)]
        parts.append(markdown_table([["", *_HEADINGS.values()], *([_name(row), *_cells(row)] for row in table.rows)]))
        notes = [f"- {escape_markdown(row.title)}: {escape_markdown(row.note)}" for row in table.rows if row.note]
        parts += ["\n".join(notes)] if notes else []
        parts += _cost_part(table)
        if chart := (charts or {}).get(table.task.name):
            parts.append(f"![{name}: mean Dice against GFLOP a volume]({quote(chart)})")
    return "\n\n".join(parts) + "\n"


def _legend() -> str:
    return (
        "A cell: reported by the paper · measured here [interval] · measured minus reported; – where there is none. "
        f"Measured: mean over classes, seeds and test cases; interval: {LEVEL:.0%}, bootstrap of the cases "
        f"({RESAMPLES} draws). Bold: the best of the rows, among the reported and among the measured numbers. "
        f"\\*: differs from the whole method (Wilcoxon signed-rank over cases, p < {ALPHA:g} after Holm's adjustment "
        "for the rows of the metric). The paper states neither HD95's unit nor NSD's tolerance; ours are named below."
    )


def _caption(table: TaskTable) -> str:
    if not table.columns:
        return "Nothing is measured yet."
    tolerance = table.columns["nsd"].removeprefix("nsd_").removesuffix("mm")
    full = next((row.title for row in table.rows if row.method == table.full), None)
    compared = f"compared with {escape_markdown(full)}" if full else "the whole method is not among the rows"
    return f"{table.cases} test cases; HD95 in mm, NSD at {tolerance} mm; {compared}."


def _name(row: TaskRow) -> str:
    seeds = f" ({row.seeds} of {row.asked} seeds)" if row.asked > 1 or row.seeds < row.asked else ""
    return escape_markdown(row.title) + seeds


def _cells(row: TaskRow) -> list[str]:
    return [" · ".join(_texts(metric, row.cells[metric], "**{}**", "\\*", " [{}, {}]")) for metric in METRICS]


def _texts(metric: str, cell: Cell, bold: str, star: str, interval: str) -> tuple[str, str, str]:
    """Returns: reported, measured, difference, in the given markup."""
    reported, measured = _number(metric, cell.paper), _number(metric, cell.ours)
    reported = bold.format(reported) if cell.paper_best else reported
    measured = bold.format(measured) if cell.best else measured
    if cell.significant:
        measured += star
    if cell.interval:
        measured += interval.format(*(_number(metric, end) for end in cell.interval))
    return reported, measured, _number(metric, cell.difference, sign="+")


def _number(metric: str, value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{2 if metric == 'hd95' else 4}f}"


def _cost_part(table: TaskTable) -> list[str]:
    finished = [row for row in table.rows if row.seeds]
    if not finished:
        return []
    shown = [
        name
        for place, name in enumerate(COSTS)
        if place < _ALWAYS_SHOWN or any(row.cost[name] is not None for row in finished)
    ]
    lines = [["", *(COSTS[name][2] for name in shown)]]
    lines += [[escape_markdown(row.title), *(_amount(row, name) for name in shown)] for row in finished]
    about = (
        "Cost, means over seeds. A volume is the first test case; GB are the highest resident memory of the process, "
        "libraries included; training holds validation and what came before an interruption."
    )
    return [about, markdown_table(lines)]


def _amount(row: TaskRow, name: str) -> str:
    value = row.cost[name]
    if value is None:
        return "–"
    value /= COSTS[name][3]
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table_csv(paper: PaperTable, tables: Sequence[TaskTable]) -> str:
    """Format a line for each data set, row and metric. Cells that do not apply are empty."""
    lines: list[Sequence[object]] = [[*_CSV_HEADING, *COSTS]]
    for table in tables:
        for row in table.rows:
            for metric in METRICS:
                start = [paper.number, table.task.name, row.method, row.title, metric, table.columns.get(metric)]
                costs = [row.cost[name] for name in COSTS]
                lines.append([*start, table.cases, row.seeds, *_csv_cell(row.cells[metric]), row.note, *costs])
    return csv_text(lines)


def _csv_cell(cell: Cell) -> list[object]:
    paired: list[object] = [None] * 4
    if found := cell.against_full:
        paired = [found.mean, *(found.interval or (None, None)), found.p_value]
    measured = [cell.paper, cell.ours, *(cell.interval or (None, None)), cell.seed_std, cell.difference]
    return [*measured, int(cell.best), int(cell.paper_best), *paired, cell.p_holm, int(cell.significant)]


def latex(paper: PaperTable, tables: Sequence[TaskTable]) -> str:
    """Format a booktabs table for each data set, with three lines for each row."""
    return "\n\n".join(_latex_part(paper, table) for table in tables) + "\n"


def _latex_part(paper: PaperTable, table: TaskTable) -> str:
    caption = (
        f"{escape_latex(paper.title)}, {escape_latex(table.task.name)}: reported by arXiv 2510.08967, measured by us, "
        rf"and the difference. Best in bold; $^{{*}}$: differs from the whole method ($p < {ALPHA:g}$, Wilcoxon, Holm)."
    )
    heading = ["", "", *(text[:-1] + _LATEX_ARROWS[text[-1]] for text in _HEADINGS.values())]
    lines: list[list[str]] = []
    for row in table.rows:
        cells = [_texts(metric, row.cells[metric], *_LATEX_MARKUP) for metric in METRICS]
        titles = (escape_latex(row.title), "", "")
        for title, kind, texts in zip(titles, _KINDS, zip(*cells, strict=True), strict=True):
            lines.append([title, kind, *(text.replace("–", "--") for text in texts)])
    notes = [rf"{escape_latex(row.title)}: {escape_latex(row.note)}." for row in table.rows if row.note]
    below = [r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize", "\n\n".join(notes) + "}"] if notes else []
    return latex_table(caption, "llrrrr", heading, [lines], below)
