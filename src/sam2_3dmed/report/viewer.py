"""The part of the page in which surfaces can be turned: NiiVue, and the meshes as data."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed.report.case_report import CaseReport, Surfaces
from sam2_3dmed.report.charts import distance_map
from sam2_3dmed.report.meshes import Floats, packed

_VENDOR = Path(__file__).parent / "vendor"
_SCRIPT = "niivue-0.69.0.umd.js"
_CHOICES = {
    "prediction distance": "prediction, coloured by mm to the truth",
    "truth distance": "truth, coloured by mm to the prediction",
    "prediction class": "prediction, coloured by class",
    "truth class": "truth, coloured by class",
}


def viewer_section(cases: Sequence[CaseReport], limit_mm: float) -> str:
    """Controls, canvas, meshes and script; empty if there is no surface."""
    if not any(s.truth or s.prediction for case in cases for s in case.surfaces):
        return ""
    ranks = "".join(f'<option value="{c.rank}">{c.rank}: {escape(c.name)}</option>' for c in cases)
    choices = "".join(f'<option value="{value}">{text}</option>' for value, text in _CHOICES.items())
    content = {"scale": _scale(), "cases": {case.rank: _case(case, limit_mm) for case in cases}}
    return (
        '<div class="controls">'
        f'<label>Case <select id="viewer-case">{ranks}</select></label>'
        f'<label>Show <select id="viewer-show">{choices}</select></label></div>'
        '<div class="viewer"><canvas id="viewer" tabindex="0" aria-label="Surfaces of the chosen case; drag to turn, '
        'wheel to zoom"></canvas><p id="viewer-note">Surfaces are being drawn.</p></div>'
        f'<ul class="key"><li>0 mm {scale_html(distance_map())} {limit_mm:g} mm and more</li></ul>'
        '<p class="soft">Drag to turn, wheel to zoom. A structure that is missing on the other side is all in the '
        "colour of the largest distance.</p>"
        f'<script type="application/json" id="surfaces-data">{json_in_html(content)}</script>'
        f"<script>{(_VENDOR / _SCRIPT).read_text(encoding='utf-8')}</script>"
        "<details><summary>Licences of the viewer, NiiVue</summary>"
        f"<pre>{escape((_VENDOR / 'LICENSES.txt').read_text(encoding='utf-8'))}</pre></details>"
    )


def scale_html(colour_map: Any) -> str:
    """A bar of the colours of one of matplotlib's maps, or of the map of that name."""
    from matplotlib import colormaps

    colours = colormaps.get_cmap(colour_map)(np.linspace(0, 1, 5), bytes=True)[:, :3].tolist()
    gradient = ",".join(f"rgb({r} {g} {b})" for r, g, b in colours)
    return f'<span class="scale" style="background:linear-gradient(90deg,{gradient})"></span>'


def json_in_html(content: Any) -> str:
    """JSON that no text in it can break out of a script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _scale() -> str:
    """256 colours, 3 bytes each, in base64."""
    colours = distance_map()(np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(colours.tobytes()).decode("ascii")


def _case(case: CaseReport, limit_mm: float) -> list[dict[str, Any]]:
    meshes = [mesh for s in case.surfaces for mesh in (s.truth, s.prediction) if mesh]
    points = np.concatenate([mesh.vertices for mesh in meshes] or [np.zeros((1, 3))])
    centre: Floats = (points.min(axis=0) + points.max(axis=0)) / 2
    return [_surfaces(surfaces, centre, limit_mm) for surfaces in case.surfaces]


def _surfaces(surfaces: Surfaces, centre: Floats, limit_mm: float) -> dict[str, Any]:
    sides = {"truth": surfaces.truth, "prediction": surfaces.prediction}
    found = {side: packed(mesh, centre, limit_mm) for side, mesh in sides.items() if mesh}
    return {"label": surfaces.label, "colour": surfaces.colour, **found}
