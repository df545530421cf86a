"""The report as one HTML file that loads nothing from elsewhere, rendered from `templates/` with Jinja2."""

import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import Colormap

from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.report.case_report import CaseReport
from sam2_3dmed.report.charts import Chart, distance_map
from sam2_3dmed.report.contents import RunContents
from sam2_3dmed.report.panels import class_colour
from sam2_3dmed.report.planes import ERROR_COLOURS
from sam2_3dmed.report.surfaces import packed

_FOLDER = Path(__file__).parent


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
        "file_text": lambda name: (_FOLDER / name).read_text(encoding="utf-8"),
        "gradient": gradient,
    }
    return found


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
