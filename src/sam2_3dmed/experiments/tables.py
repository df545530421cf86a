"""A table: measured beside reported, with tests of significance, as Markdown, CSV and LaTeX."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.evaluation.metrics import MEAN_NAME, Better, nsd_column
from sam2_3dmed.evaluation.scores import Scores, aligned, check_comparable, read_scores
from sam2_3dmed.evaluation.statistics import (
    ALPHA,
    LEVEL,
    RESAMPLES,
    PairedDifference,
    bootstrap_interval_of_mean,
    goodness,
    holm,
    paired_difference,
)
from sam2_3dmed.evaluation.text_tables import escape_latex, escape_markdown, latex_table, markdown_table
from sam2_3dmed.experiments.planning import FULL, METRICS, Experiment, PaperTable, Row, Task, find_method
from sam2_3dmed.experiments.run_executor import RunStatus
from sam2_3dmed.files.tables import csv_text

_COSTS = {
    "parameters": ("prediction", "parameters", "parameters [M]", 1e6),
    "gflop": ("prediction", "gflop", "GFLOP a volume", 1.0),
    "prediction_seconds": ("prediction", "seconds", "s a volume", 1.0),
    "prediction_memory_mb": ("prediction", "memory_mb", "prediction [GB]", 1e3),
    "training_seconds": ("training", "seconds", "training [h]", 3600.0),
    "training_memory_mb": ("training", "memory_mb", "training [GB]", 1e3),
    "prediction_gpu_memory_mb": ("prediction", "gpu_memory_mb", "prediction, GPU [GB]", 1e3),
    "training_gpu_memory_mb": ("training", "gpu_memory_mb", "training, GPU [GB]", 1e3),
    "training_energy_kj": ("training", "energy_kj", "training [kJ]", 1.0),
    "prediction_energy_kj": ("prediction", "energy_kj", "kJ a volume", 1.0),
}
"""The costs of a row: its part of cost.json and its key there, its heading in table.md and the unit there."""
_ROW = ("mean", MEAN_NAME)
_BETTER: Mapping[str, Better] = {"dice": "higher", "iou": "higher", "hd95": "lower", "nsd": "higher"}
_UNFINISHED = {"missing": "not run yet", "begun": "training is not finished", "trained": "not tested yet"}
_HEADINGS = {"dice": "Dice ↑", "iou": "IoU ↑", "hd95": "HD95 ↓", "nsd": "NSD ↑"}
_KINDS = ("reported", "measured", "difference")
_MARKDOWN_MARKUP = ("**{}**", "\\*", " [{}, {}]")
_LATEX_MARKUP = (r"\textbf{{{}}}", "$^{*}$", r" {{\small [{}, {}]}}")
_LATEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_LEGEND = (
    "A cell: reported by the paper · measured here [interval] · measured minus reported; – where there is none. "
    f"Measured: mean over classes, seeds and test cases; interval: {LEVEL:.0%}, bootstrap of the cases "
    f"({RESAMPLES} draws). Bold: the best of the rows, among the reported and among the measured numbers. "
    f"\\*: differs from the whole method (Wilcoxon signed-rank over cases, p < {ALPHA:g} after Holm's adjustment "
    "for the rows of the metric). The paper states neither HD95's unit nor NSD's tolerance; ours are named below."
)
_ALWAYS_SHOWN = 6  # of the costs; the others only where they are known
_CSV_HEADING = [
    *("table", "task", "method", "row", "metric", "column", "cases", "seeds"),
    *("reported", "measured", "low", "high", "seed_std", "difference", "best", "reported_best"),
    *("minus_full", "full_low", "full_high", "p", "p_holm", "significant", "note"),
]


@dataclass(frozen=True)
class Cell:
    """A metric of a row on a data set, reported and measured: means over classes, seeds and cases.

    Attributes:
        interval: Bootstrap interval of `ours` over cases.
        seed_std: Standard deviation between the means of seeds, None for one seed.
        against_full: Paired difference from the complete method, None for that method.
        p_holm: Its p, adjusted for all rows of the metric on this data set.
    """

    paper: float | None
    ours: float | None = None
    interval: tuple[float, float] | None = None
    seed_std: float | None = None
    best: bool = False
    paper_best: bool = False
    against_full: PairedDifference | None = None
    p_holm: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus reported."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper

    @property
    def significant(self) -> bool:
        """Whether the row differs from the complete method."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class TaskRow:
    """A row of a table for one data set: a cell for each metric, and the costs by the names of _COSTS.

    Attributes:
        seeds: Number of finished runs, out of `asked`.
        note: Caveat of the row, and why numbers are missing.
    """

    method: str
    title: str
    cells: Mapping[str, Cell]
    seeds: int
    asked: int
    note: str
    cost: Mapping[str, float | None]


@dataclass(frozen=True)
class TaskTable:
    """A table for one data set.

    Attributes:
        full: The row of the complete method, None if there is none.
        columns: Metric -> column of cases.csv; empty while nothing is scored.
    """

    task: Task
    rows: tuple[TaskRow, ...]
    full: str | None
    cases: int
    columns: Mapping[str, str]


def task_table(experiment: Experiment, task: Task) -> TaskTable:
    """Collect what is measured so far on one data set."""
    same = _same_as_full(experiment, task)
    reference: Scores | None = None
    scores: dict[str, list[Scores]] = defaultdict(list)
    costs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in sorted(experiment.rows, key=lambda row: row.method not in same):  # the complete method is the reference
        for run in row.runs.get(task.name, ()):
            status = RunStatus.find(run, experiment.request.out)
            try:
                found = _read_scores(status, reference)
            except UserError as error:
                reasons[row.method].append(f"seed {run.seed}: {error}")
                continue
            reference = reference or found
            scores[row.method].append(found)
            costs[row.method].append(status.cost)
    columns = _columns(reference) if reference else {}
    reported, column, cells = experiment.paper.values, task.column or "", {}
    for metric in METRICS:
        values = {name: np.stack([one.values[_ROW, columns[metric]] for one in own]) for name, own in scores.items()}
        paper = {row.method: reported.get(row.title, {}).get(column, {}).get(metric) for row in experiment.rows}
        cells[metric] = _cells(paper, values, same, _BETTER[metric])
    rows = tuple(
        TaskRow(
            method=row.method,
            title=row.title,
            cells={metric: of_rows[row.method] for metric, of_rows in cells.items()},
            seeds=len(scores.get(row.method, ())),
            asked=len(row.runs.get(task.name, ())),
            note=_note(row, reasons[row.method], same),
            cost=_mean_cost(costs[row.method]),
        )
        for row in experiment.rows
    )
    return TaskTable(task, rows, same[0] if same else None, len(reference.cases) if reference else 0, columns)


def _same_as_full(experiment: Experiment, task: Task) -> list[str]:
    """The rows with the runs of the complete method on this data set, that method first."""
    keys = [run.key for run in experiment.full[task.name]]
    same = [row.method for row in experiment.rows if [run.key for run in row.runs.get(task.name, ())] == keys]
    return sorted(same, key=lambda method: method != FULL)


def _read_scores(status: RunStatus, reference: Scores | None) -> Scores:
    """Raise UserError if the run is not finished, or its scores are not comparable with the reference."""
    if status.state != "done":
        raise DataError(f"failed: {status.failure}" if status.failure else _UNFINISHED[status.state])
    scores = read_scores(status.folder)
    if reference is None:
        return scores
    check_comparable([reference, scores], list(_columns(reference).values()))
    return aligned(scores, reference.cases)


def _columns(scores: Scores) -> dict[str, str]:
    """The column of each of the paper's metrics; NSD at the first tolerance, which is the plan's."""
    tolerances = [entry["tolerance_mm"] for entry in scores.metrics.values() if "tolerance_mm" in entry]
    return {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd": nsd_column(tolerances[0])}


def _note(row: Row, reasons: Sequence[str], same: Sequence[str]) -> str:
    configs = [run.config for runs in row.runs.values() for run in runs]
    names = next((names for config in configs if (names := getattr(config, "names", None))), None)
    notes = [find_method(row.method).caveat, names and f"names of classes {names}", row.problem, *reasons]
    if row.method in same[1:]:
        notes.append("the same runs as the whole method")
    return "; ".join(note for note in notes if note)


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name, (part, key, *_) in _COSTS.items():
        known = [cost[part][key] for cost in costs if cost.get(part, {}).get(key) is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _cells(
    reported: Mapping[str, float | None],
    values: Mapping[str, NDArray[np.float64]],
    same: Sequence[str],
    better: Better,
) -> dict[str, Cell]:
    """The cells of one metric, by row. values: (seeds, cases) of each row with a finished run."""
    by_case = {name: array.mean(axis=0) for name, array in values.items()}
    full = next((by_case[name] for name in same if name in by_case), None)
    paired = {
        name: paired_difference(array, full, better)
        for name, array in by_case.items()
        if full is not None and name not in same
    }
    adjusted = dict(zip(paired, holm(found.p_value for found in paired.values()), strict=True))
    means = {name: float(array.mean()) for name, array in by_case.items()}
    best, paper_best = _best(means, better), _best(reported, better)
    cells = {name: Cell(paper, paper_best=name in paper_best) for name, paper in reported.items()}
    for name, mean in means.items():
        seed_means = values[name].mean(axis=1)
        cells[name] = replace(
            cells[name],
            ours=mean,
            interval=bootstrap_interval_of_mean(by_case[name]),
            seed_std=float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None,
            best=name in best,
            against_full=paired.get(name),
            p_holm=adjusted.get(name),
        )
    return cells


def _best(values: Mapping[str, float | None], better: Better) -> set[str]:
    """The rows with the best value. A single value is not called the best."""
    known = {name: float(goodness(value, better)) for name, value in values.items() if value is not None}
    return {name for name, value in known.items() if value == max(known.values())} if len(known) > 1 else set()


def markdown(paper: PaperTable, tables: Sequence[TaskTable], charts: Mapping[str, str] | None = None) -> str:
    """All data sets of a table, with a legend. charts: data set -> file of its chart of accuracy and cost."""
    parts = [f"# Table {paper.number}: {paper.title}", _LEGEND]
    for table in tables:
        name = escape_markdown(table.task.name)
        parts += [f"## {name}", _caption(table)]
        lines = [["", *_HEADINGS.values()]]
        for row in table.rows:
            seeds = f" ({row.seeds} of {row.asked} seeds)" if row.asked > 1 or row.seeds < row.asked else ""
            cells = [" · ".join(_texts(metric, row.cells[metric], *_MARKDOWN_MARKUP)) for metric in METRICS]
            lines.append([escape_markdown(row.title) + seeds, *cells])
        parts.append(markdown_table(lines))
        notes = [f"- {escape_markdown(row.title)}: {escape_markdown(row.note)}" for row in table.rows if row.note]
        parts += ["\n".join(notes)] if notes else []
        parts += _cost_part(table)
        if chart := (charts or {}).get(table.task.name):
            parts.append(f"![{name}: mean Dice against GFLOP a volume]({quote(chart)})")
    return "\n\n".join(parts) + "\n"


def _caption(table: TaskTable) -> str:
    if not table.columns:
        return "Nothing is measured yet."
    tolerance = table.columns["nsd"].removeprefix("nsd_").removesuffix("mm")
    full = next((row.title for row in table.rows if row.method == table.full), None)
    compared = f"compared with {escape_markdown(full)}" if full else "the whole method is not among the rows"
    return f"{table.cases} test cases; HD95 in mm, NSD at {tolerance} mm; {compared}."


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
        for place, name in enumerate(_COSTS)
        if place < _ALWAYS_SHOWN or any(row.cost[name] is not None for row in finished)
    ]
    lines = [["", *(_COSTS[name][2] for name in shown)]]
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
    value /= _COSTS[name][3]
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table_csv(paper: PaperTable, tables: Sequence[TaskTable]) -> str:
    """Format a line for each data set, row and metric. Cells that do not apply are empty."""
    lines: list[Sequence[object]] = [[*_CSV_HEADING, *_COSTS]]
    for table in tables:
        for row in table.rows:
            for metric, cell in row.cells.items():
                start = [paper.number, table.task.name, row.method, row.title, metric, table.columns.get(metric)]
                costs = [row.cost[name] for name in _COSTS]
                lines.append([*start, table.cases, row.seeds, *_csv_cell(cell), row.note, *costs])
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
