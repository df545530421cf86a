"""From a run folder to report.html and figures/."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from sam2_3dmed.errors import UserError
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.report import charts
from sam2_3dmed.report.case_report import CaseReport, case_report, distance_limit_mm, still
from sam2_3dmed.report.charts import Chart
from sam2_3dmed.report.contents import CaseEntry, RunContents, chosen_cases, read_run
from sam2_3dmed.report.page import page_html
from sam2_3dmed.run.run_folder import load_model
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

REPORT_FILE = "report.html"
_PREFERRED_METRIC = "dice"
# A triangle and its share of the vertices take about 21 bytes in the page.
_MAX_TRIANGLES = 400_000
_MAX_TRIANGLES_A_MESH = 30_000

logger = logging.getLogger(__name__)


def write_report(run: Path, data: Path | None = None, out: Path | None = None) -> Path:
    """Make the report of a run: one HTML file, which is returned, and its figures as PNG and SVG in RUN/figures.

    The page notes what is missing: the evaluation, images, a case that cannot be read. Boundary maps and relative
    positions come from RUN/auxiliary. For a case without them the model computes them once and they are kept there.

    data is the folder of the data set; None takes the folder of the training.

    Raises:
        UserError: The folder is no run, a file in it is broken, `data` is no data set, or a file cannot be written.
    """
    contents = read_run(run, data)
    figures, metrics = run / "figures", contents.metrics
    ranked_by = _PREFERRED_METRIC if _PREFERRED_METRIC in metrics else next(iter(metrics), "")
    cases = _cases(contents, ranked_by, figures) if metrics else []
    limit_mm = distance_limit_mm(cases)
    html = page_html(
        contents,
        curves=_curves(contents, figures),
        distributions=_distributions(contents, figures),
        cases=[replace(case, still=still(case, limit_mm, figures)) for case in cases],
        ranked_by=ranked_by,
        limit_mm=limit_mm,
    )
    for note in contents.notes:
        logger.warning("%s", note)
    path = out or run / REPORT_FILE
    write_text(path, html)
    return path


def _cases(contents: RunContents, ranked_by: str, figures: Path) -> list[CaseReport]:
    chosen = chosen_cases(contents.cases, ranked_by, contents.metrics[ranked_by]["better"])
    lost = sum(not (case.prediction and case.truth) for case in contents.cases)
    if lost:
        contents.notes.append(f"{lost} of {len(contents.cases)} cases: mask or label file is no longer where it was")
    num_meshes = 2 * len(chosen) * contents.record.plan.num_classes
    max_triangles = min(_MAX_TRIANGLES_A_MESH, _MAX_TRIANGLES // max(num_meshes, 1))
    auxiliary = _auxiliary_source(contents)
    reports = []
    for rank, entry in chosen.items():
        try:
            report = case_report(rank, entry, contents.record.plan, figures, auxiliary, max_triangles)
            reports.append(replace(report, score=entry.score(ranked_by)))
        except UserError as error:
            contents.notes.append(f"{entry.name} is not shown: {error}")
    return reports


def _auxiliary_source(contents: RunContents) -> Callable[[CaseEntry, Volume], Auxiliary | None]:
    """A function for a case's auxiliary outputs: kept ones, or computed by the model, which is loaded once."""
    folder = contents.folder / "auxiliary"

    @cache
    def model() -> Segmenter:
        return load_model(contents.folder)

    def auxiliary(entry: CaseEntry, image: Volume) -> Auxiliary | None:
        try:
            kept = Auxiliary.read(folder, entry.name)
            if kept is not None or not contents.record.has_auxiliary:
                return kept
            reference = read_label(entry.truth) if contents.record.needs_reference and entry.truth else None
            _, computed = model().with_auxiliary(image, reference=reference)
            computed.write(folder, entry.name)
            return Auxiliary.read(folder, entry.name)  # the same as for every later report
        except UserError as error:
            contents.notes.append(f"{entry.name}: no boundary map and relative positions: {error}")
            return None

    return auxiliary


def _curves(contents: RunContents, figures: Path) -> list[Chart]:
    epochs = [epoch or 0.0 for epoch in contents.curves.get("epoch", ())]
    groups: defaultdict[str, dict[str, Sequence[float | None]]] = defaultdict(dict)
    for name, column in contents.curves.items():
        if name not in ("epoch", "step") and any(value is not None for value in column):
            group, _, short = name.rpartition("/")
            groups[group or name][short.replace("_", " ")] = column
    found = []
    for group, series in groups.items():
        text = group.replace("_", " ")
        positive = all(value is None or value > 0 for column in series.values() for value in column)
        # Loss terms differ by orders of magnitude.
        figure = charts.lines_chart(text, epochs, series, logarithmic=group == "train" and positive)
        found.append(Chart(f"{text} over the epochs", charts.save_figure(figure, figures, f"curves_{group}")))
    return found


def _distributions(contents: RunContents, figures: Path) -> list[Chart]:
    found = []
    for metric, definition in contents.metrics.items():
        values: defaultdict[str, list[float | None]] = defaultdict(list)
        for case in contents.cases:
            for row in case.rows:
                values[row["class"]].append(row.get(metric))
        figure = charts.distribution_chart(metric, values, definition["unit"])
        text = f"{metric} of each test case by class: box of the quartiles, a dot a case"
        found.append(Chart(text, charts.save_figure(figure, figures, f"distribution_{metric}")))
    return found
