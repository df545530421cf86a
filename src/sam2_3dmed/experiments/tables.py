"""A table as text: Markdown, CSV and LaTeX, each cell with what is reported, what is measured, and the difference."""

import csv
import io
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from sam2_3dmed.evaluation.comparison_tables import escape_latex, escape_markdown
from sam2_3dmed.evaluation.statistics import ALPHA, LEVEL, RESAMPLES
from sam2_3dmed.experiments.paper import METRICS, PaperTable
from sam2_3dmed.experiments.results import Cell, TaskRow, TaskTable

_ARROWS = {"dice": "Dice ↑", "iou": "IoU ↑", "hd95": "HD95 ↓", "nsd": "NSD ↑"}
_LATEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_COST = {
    "parameters": ("parameters [M]", 1e6),
    "gflop": ("GFLOP a volume", 1.0),
    "prediction_seconds": ("s a volume", 1.0),
    "prediction_memory_mb": ("prediction [GB]", 1e3),
    "training_seconds": ("training [h]", 3600.0),
    "training_memory_mb": ("training [GB]", 1e3),
    "prediction_gpu_memory_mb": ("prediction, GPU [GB]", 1e3),
    "training_gpu_memory_mb": ("training, GPU [GB]", 1e3),
    "training_energy_kj": ("training [kJ]", 1.0),
    "prediction_energy_kj": ("kJ a volume", 1.0),
}
_ALWAYS = 6  # of the costs above; of the others those that are known


def markdown(paper: PaperTable, tables: Sequence[TaskTable], pictures: Mapping[str, str] | None = None) -> str:
    """All parts, with what is needed to read them. pictures: by data set, the file beside it of accuracy and cost."""
    parts = [f"# Table {paper.number}: {paper.title}", _legend()]
    for table in tables:
        parts.append(f"## {escape_markdown(table.task.name)}")
        parts.append(_about(table))
        parts.append(_grid([["", *_ARROWS.values()], *([_name(row), *_cells(row)] for row in table.rows)]))
        notes = [f"- {escape_markdown(row.title)}: {escape_markdown(row.note)}" for row in table.rows if row.note]
        parts += ["\n".join(notes)] if notes else []
        parts += _cost_part(table)
        if picture := (pictures or {}).get(table.task.name):
            parts.append(f"![{escape_markdown(table.task.name)}: mean Dice against GFLOP a volume]({quote(picture)})")
    return "\n\n".join(parts) + "\n"


def _legend() -> str:
    return (
        "A cell: reported by the paper · measured here [interval] · measured minus reported; – where there is none. "
        f"Measured: mean over classes, seeds and test cases; interval: {LEVEL:.0%}, bootstrap of the cases "
        f"({RESAMPLES} draws). Bold: the best of the rows, among the reported and among the measured numbers. "
        f"\\*: differs from the whole method (Wilcoxon signed-rank over cases, p < {ALPHA:g} after Holm's adjustment "
        "for the rows of the metric). The paper states neither HD95's unit nor NSD's tolerance; ours are named below."
    )


def _about(table: TaskTable) -> str:
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
    return [_cell(metric, row.cells[metric]) for metric in METRICS]


def _cell(metric: str, cell: Cell) -> str:
    reported = _strong(_number(metric, cell.paper), cell.paper_best)
    measured = _strong(_number(metric, cell.ours), cell.best) + ("\\*" if cell.significant else "")
    if cell.interval:
        measured += f" [{_number(metric, cell.interval[0])}, {_number(metric, cell.interval[1])}]"
    return f"{reported} · {measured} · {_number(metric, cell.difference, sign=True)}"


def _strong(text: str, strong: bool) -> str:
    return f"**{text}**" if strong else text


def _number(metric: str, value: float | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{2 if metric == 'hd95' else 4}f}"


def _cost_part(table: TaskTable) -> list[str]:
    known = [row for row in table.rows if row.seeds]
    if not known:
        return []
    shown = {
        key: heading
        for place, (key, heading) in enumerate(_COST.items())
        if place < _ALWAYS or any(row.cost[key] is not None for row in known)
    }
    lines = [["", *(title for title, _ in shown.values())]]
    lines += [
        [escape_markdown(row.title), *(_amount(row.cost[key], unit) for key, (_, unit) in shown.items())]
        for row in known
    ]
    about = (
        "Cost, means over seeds. A volume is the first test case; GB are the highest resident memory of the process, "
        "libraries included; training holds validation and what came before an interruption."
    )
    return [about, _grid(lines)]


def _amount(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.3g}" if abs(value / unit) < 1000 else f"{value / unit:.0f}"


def _grid(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    body = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    body.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def table_csv(paper: PaperTable, tables: Sequence[TaskTable]) -> str:
    """A line for each data set, row and metric; what does not apply is empty."""
    cost = list(_COST)
    header = "table,task,method,row,metric,column,cases,seeds,reported,measured,low,high,seed_std,difference,best"
    header += ",reported_best,minus_full,full_low,full_high,p,p_holm,significant,note"
    lines: list[Sequence[object]] = [[*header.split(","), *cost]]
    for table in tables:
        for row in table.rows:
            for metric in METRICS:
                cell = row.cells[metric]
                start = [paper.number, table.task.name, row.method, row.title, metric, table.columns.get(metric)]
                costs = [row.cost[key] for key in cost]
                lines.append([*start, table.cases, row.seeds, *_csv_cell(cell), row.note, *costs])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _csv_cell(cell: Cell) -> list[object]:
    found = cell.against_full
    low, high = cell.interval or (None, None)
    paired: list[object] = [None] * 4
    if found is not None:
        paired = [found.mean, *(found.interval or (None, None)), found.p_value]
    measured = [cell.paper, cell.ours, low, high, cell.seed_std, cell.difference]
    return [*measured, int(cell.best), int(cell.paper_best), *paired, cell.p_holm, int(cell.significant)]


def latex(paper: PaperTable, tables: Sequence[TaskTable]) -> str:
    """A booktabs table for each data set: of each row what is reported, what is measured, and the difference."""
    return "\n\n".join(_latex_part(paper, table) for table in tables) + "\n"


def _latex_part(paper: PaperTable, table: TaskTable) -> str:
    name = escape_latex(table.task.name)
    caption = (
        f"{escape_latex(paper.title)}, {name}: reported by arXiv 2510.08967, measured by us, and the difference. "
        rf"Best in bold; $^{{*}}$: differs from the whole method ($p < {ALPHA:g}$, Wilcoxon, Holm)."
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        r"\begin{tabular}{llrrrr}",
        r"\toprule",
        _latex_line(["", "", *(text[:-1] + _LATEX_ARROWS[text[-1]] for text in _ARROWS.values())]),
        r"\midrule",
    ]
    for row in table.rows:
        cells = {metric: row.cells[metric] for metric in METRICS}
        lines.append(_latex_line([escape_latex(row.title), "reported", *_latex_row(cells, "reported")]))
        lines.append(_latex_line(["", "measured", *_latex_row(cells, "measured")]))
        lines.append(_latex_line(["", "difference", *_latex_row(cells, "difference")]))
    notes = [rf"{escape_latex(row.title)}: {escape_latex(row.note)}." for row in table.rows if row.note]
    below = [r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize", "\n\n".join(notes) + "}"] if notes else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"])


def _latex_row(cells: Mapping[str, Cell], which: str) -> list[str]:
    texts = []
    for metric, cell in cells.items():
        value = {"reported": cell.paper, "measured": cell.ours, "difference": cell.difference}[which]
        text = _number(metric, value, sign=which == "difference").replace("–", "--")
        if {"reported": cell.paper_best, "measured": cell.best}.get(which):
            text = rf"\textbf{{{text}}}"
        if which == "measured" and cell.significant:
            text += "$^{*}$"
        if which == "measured" and cell.interval:
            low, high = (_number(metric, end) for end in cell.interval)
            text += rf" {{\small [{low}, {high}]}}"
        texts.append(text)
    return texts


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
