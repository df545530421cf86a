"""From a run folder to figures/ and report.html, one file that loads nothing from elsewhere, rendered with Jinja2."""

import base64
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import Colormap

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.inference.interface import Auxiliary, Segmenter
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.report import charts
from sam2_3dmed.report.charts import Chart, distance_map
from sam2_3dmed.report.contents import CaseEntry, RunContents, chosen_cases, read_run
from sam2_3dmed.report.panels import class_colour
from sam2_3dmed.report.planes import ERROR_COLOURS, CaseReport, case_report, distance_limit_mm, still
from sam2_3dmed.report.surfaces import packed
from sam2_3dmed.run.run_folder import load_model
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

REPORT_FILE = "report.html"
_FOLDER = Path(__file__).parent
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
    figures, metrics = _own_folder(run, "figures"), contents.metrics
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


def _own_folder(run: Path, name: str) -> Path:
    """A folder of the run. Raises DataError if it is a link to somewhere else, where nothing may be written."""
    folder = run / name
    if not folder.resolve().is_relative_to(run.resolve()):
        raise DataError(f"{folder}: is a link to a folder outside the run; the report writes only below the run")
    return folder


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
    folder = _own_folder(contents.folder, "auxiliary")

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
            group, _, short = name.partition("/")  # the names of classes may have more slashes
            groups[group][(short or group).replace("_", " ")] = column
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


def page_html(
    contents: RunContents,
    *,
    curves: Sequence[Chart] = (),
    distributions: Sequence[Chart] = (),
    cases: Sequence[CaseReport] = (),
    ranked_by: str = "",
    limit_mm: float = 1.0,
) -> str:
    """Render the whole file. ranked_by: the metric that ranks the cases. limit_mm: the end of the colour scale."""
    sections = {
        "results": ("Results", contents.summary),
        "curves": ("Training and validation", curves),
        "distributions": ("Distribution over the test cases", distributions),
        "table": ("Every case", contents.cases),
        "examples": ("Best, median and worst case", cases),
        "surfaces": ("Surfaces in 3D", any(case.meshes for case in cases)),
        "definitions": ("What was measured, and how", contents.summary),
    }
    scale = distance_map()(np.arange(256), bytes=True)[:, :3]
    meshes = {
        "scale": base64.b64encode(scale.tobytes()).decode("ascii"),
        "cases": {case.rank: _case_meshes(case, limit_mm) for case in cases},
    }
    template = environment().get_template("page.html")
    return template.render(
        contents=contents,
        plan=contents.record.plan,
        metrics=contents.metrics,
        sections={name: title for name, (title, content) in sections.items() if content},
        curves=curves,
        distributions=distributions,
        cases=cases,
        ranks={case.name: case.rank for case in cases},
        ranked_by=ranked_by,
        limit_mm=limit_mm,
        meshes=meshes,
        has_boundary=any("P_bd" in panel.title for case in cases for panel in case.panels),
    )


@cache
def environment() -> Environment:
    """Jinja's environment with the templates, their filters and functions."""
    found = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    found.filters["number"] = _number
    found.globals |= {
        "class_colour": class_colour,
        "distance_map": distance_map,
        "error_colours": ERROR_COLOURS,
        "file_text": _file_text,
        "script_hash": script_hash,
        "gradient": gradient,
    }
    return found


def _file_text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def script_hash(name: str) -> str:
    """The source expression for a Content-Security-Policy that lets this script of ours run, and no other."""
    digest = hashlib.sha256(_file_text(name).encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _number(value: float | None, unit: str | None = None) -> str:
    """Three decimals for shares, two for values with a unit, a dash for an undefined value."""
    if value is None:
        return "–"
    return f"{value:.2f}" if unit else f"{value:.3f}"


def gradient(colour_map: Colormap | str) -> str:
    """A matplotlib colour map, given by itself or by name, as a CSS gradient."""
    colours = colormaps.get_cmap(colour_map)(np.linspace(0, 1, 5), bytes=True)[:, :3].tolist()
    return f"linear-gradient(90deg,{','.join(f'rgb({r} {g} {b})' for r, g, b in colours)})"


def _case_meshes(case: CaseReport, limit_mm: float) -> list[dict[str, Any]]:
    """For each class its label, its colour and its packed meshes, around the middle of all meshes of the case."""
    points = np.concatenate([mesh.vertices for mesh in case.meshes] or [np.zeros((1, 3))])
    centre: Floats = (points.min(axis=0) + points.max(axis=0)) / 2
    found = []
    for surfaces in case.surfaces:
        sides = {"truth": surfaces.truth, "prediction": surfaces.prediction}
        meshes_of = {side: packed(mesh, centre, limit_mm) for side, mesh in sides.items() if mesh}
        found.append({"label": surfaces.label, "colour": surfaces.colour, **meshes_of})
    return found
