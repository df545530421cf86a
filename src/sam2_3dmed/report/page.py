"""The report as one HTML file that needs nothing from anywhere else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sam2_3dmed.report.case_report import CaseReport, Chart
from sam2_3dmed.report.contents import RunContents
from sam2_3dmed.report.panels import class_colour, panel_svg
from sam2_3dmed.report.planes import ERROR_COLOURS
from sam2_3dmed.report.viewer import scale_html, viewer_section

_STATIC = Path(__file__).parent / "static"
# Nothing may be loaded, from wherever: what the page needs stands in it.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "font-src data:; connect-src data: blob:"
)


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    curves, distributions: charts. cases: best, median, worst. stills: their surfaces, by rank. ranked_by: the metric.
    limit_mm: where the scale of distances ends.
    """

    contents: RunContents
    curves: Sequence[Chart]
    distributions: Sequence[Chart]
    cases: Sequence[CaseReport]
    stills: Mapping[str, Chart]
    ranked_by: str
    limit_mm: float


def page_html(page: Page) -> str:
    """The whole file."""
    contents = page.contents
    sections = {
        "results": ("Results", _results(contents)),
        "curves": ("Training and validation", _grid(page.curves)),
        "distributions": ("Distribution over the test cases", _grid(page.distributions)),
        "table": ("Every case", _case_table(page)),
        "examples": ("Best, median and worst case", _cases(page)),
        "surfaces": ("Surfaces in 3D", viewer_section(page.cases, page.limit_mm)),
        "definitions": ("What was measured, and how", _definitions(contents)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in shown.items())
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{html}</section>' for name, (title, html) in shown.items())
    title = f"{escape(contents.record.plan.dataset)}: report of {escape(contents.folder.resolve().name)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_static("page.css")}</style></head><body>'
        f'<header><h1>{title}</h1>{_facts(contents)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f"<main>{_notes(contents.notes)}{body}</main>{_footer(contents)}"
        f"<script>{_static('page.js')}</script></body></html>\n"
    )


def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _facts(contents: RunContents) -> str:
    record = contents.record
    epochs = len(contents.curves.get("epoch", ()))
    parts = [
        f"{len(contents.cases)} test cases",
        f"classes: {', '.join(record.plan.labels.values())}",
        f"model: {record.about}",
        f"weights: {record.weights}",
        f"{epochs} epochs",
    ]
    return f'<p class="soft">{escape("; ".join(parts))}. Not for clinical use.</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="notes" aria-label="What is missing"><ul>{lines}</ul></aside>'


def _number(value: Any, unit: str | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if unit else f"{value:.3f}"


def _header_cells(contents: RunContents) -> str:
    cells = []
    for metric, definition in contents.metrics.items():
        better = {"higher": "higher is better", "lower": "lower is better"}.get(definition["better"], "0 is best")
        cells.append(f'<th scope="col" title="{escape(better)}"><button type="button">{escape(metric)}</button></th>')
    return "".join(cells)


def _results(contents: RunContents) -> str:
    """A row a class: the mean over the cases and its interval."""
    if not contents.summary:
        return ""
    rows = []
    for result in contents.summary["results"]:
        cells = [f'<th scope="row" data-value="{escape(result["class"])}">{escape(result["class"])}</th>']
        for metric, definition in contents.metrics.items():
            found, unit = result.get(metric) or {}, definition["unit"]
            mean, interval = found.get("mean"), found.get("interval_95")
            spread = (
                f'<br><span class="soft">{" to ".join(_number(v, unit) for v in interval)}</span>' if interval else ""
            )
            cells.append(f'<td data-value="{"" if mean is None else mean}">{_number(mean, unit)}{spread}</td>')
        for kind in ("missed", "invented"):
            cells.append(f'<td data-value="{result.get(kind, "")}">{result.get(kind, "–")}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = '<th scope="col"><button type="button">class</button></th>' + _header_cells(contents)
    head += "".join(f'<th scope="col"><button type="button">{kind}</button></th>' for kind in ("missed", "invented"))
    return (
        "<p>Means over the cases; below them the 95% bootstrap interval of the mean.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results by class"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _case_table(page: Page) -> str:
    """A row a case and class; the page shows one class at a time and sorts by any column."""
    contents = page.contents
    if not contents.cases:
        return ""
    ranks = {case.name: case.rank for case in page.cases}
    rows, classes = [], {}
    for case in contents.cases:
        badge = f' <span class="badge">{ranks[case.name]}</span>' if case.name in ranks else ""
        for row in case.rows:
            classes[row["class"]] = row["kind"]
            name, label = escape(case.name), escape(row["class"])
            cells = [
                f'<th scope="row" class="text" data-value="{name}">{name}{badge}</th>'
                f'<td class="text" data-value="{label}">{label}</td>'
            ]
            for metric, definition in contents.metrics.items():
                value = row.get(metric)
                shown = _number(value, definition["unit"])
                cells.append(f'<td data-value="{"" if value is None else value}">{shown}</td>')
            rows.append(f'<tr data-class="{label}">{"".join(cells)}</tr>')
    options = "".join(
        f'<option{" selected" if kind == "mean" else ""} value="{escape(name)}">{escape(name)}</option>'
        for name, kind in classes.items()
    )
    head = "".join(f'<th scope="col" class="text"><button type="button">{n}</button></th>' for n in ("case", "class"))
    return (
        '<div class="controls"><label>Class <select id="class-filter"><option value="">all</option>'
        f'{options}</select></label></div><div class="scroll" tabindex="0" role="region" aria-label="Every case">'
        f'<table id="cases"><thead><tr>{head}{_header_cells(contents)}</tr></thead><tbody>{"".join(rows)}</tbody>'
        '</table></div><p class="soft">A column\'s name sorts by it, and once more the other way round.</p>'
    )


def _grid(charts: Sequence[Chart]) -> str:
    return f'<div class="grid">{"".join(map(_figure, charts))}</div>' if charts else ""


def _figure(chart: Chart) -> str:
    text = escape(chart.text)
    kind = ' class="wide" tabindex="0"' if chart.wide else ""
    return f'<figure{kind}><img src="{chart.address}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _cases(page: Page) -> str:
    if not page.cases:
        return ""
    metric = escape(page.ranked_by)
    scores = {case.name: case.score(page.ranked_by) for case in page.contents.cases}
    blocks = []
    for case in page.cases:
        panels = "".join(
            f"<figure>{panel_svg(p)}<figcaption>{escape(p.title)}</figcaption></figure>" for p in case.panels
        )
        still = _figure(page.stills[case.rank]) if case.rank in page.stills else ""
        charts = "".join(map(_figure, case.charts))
        blocks.append(
            f"<article><h3>{case.rank}: {escape(case.name)}, {metric} {_number(scores[case.name], None)}</h3>"
            f'<div class="grid panels">{panels}</div>{still}<div class="grid pair">{charts}</div></article>'
        )
    return f"<p>Ranked by the mean of {metric} over the classes. {_KEY_TEXT}</p>{_key(page)}{''.join(blocks)}"


_KEY_TEXT = (
    "Shown is the slice with the most wrong pixels, and the two planes that cross it in the middle of its widest wrong "
    "patch. Patient's right is on the left."
)


def _key(page: Page) -> str:
    labels = page.contents.record.plan.labels.values()
    outlines = [(class_colour(number), "swatch", name) for number, name in enumerate(labels)]
    areas = [(colour, "swatch area", f"error map: {name}") for name, colour in ERROR_COLOURS.items()]
    items = [
        f'<li><span class="{kind}" style="{"background" if "area" in kind else "border-color"}:{colour}"></span>'
        f"{escape(name)}</li>"
        for colour, kind, name in (*outlines, *areas)
    ]
    items.insert(len(outlines), '<li><span class="swatch dashed"></span>truth (white)</li>')
    if any("P_bd" in panel.title for case in page.cases for panel in case.panels):
        items.append(f"<li>P_bd: 0 {scale_html('cividis')} 1</li>")
    return f'<ul class="key">{"".join(items)}</ul>'


def _definitions(contents: RunContents) -> str:
    if not contents.summary:
        return ""
    entries = [
        (metric, definition["definition"] + (f", in {definition['unit']}" if definition["unit"] else ""))
        for metric, definition in contents.metrics.items()
    ]
    surface = contents.summary.get("surface")
    if isinstance(surface, Mapping):
        entries.append((f"surface: {surface.get('definition', '')}", str(surface.get("meaning", ""))))
    entries.append(("empty masks", json.dumps(contents.summary.get("empty_masks", ""), ensure_ascii=False).strip('"')))
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries) + "</dl>"


def _footer(contents: RunContents) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in contents.record.versions.items())
    return (
        f'<footer><p class="soft">Trained with {escape(versions)}. The figures stand in the folder figures/ of the '
        "run, as PNG and SVG. Outlines follow the edges of pixels and stay one pixel wide at any zoom.</p></footer>"
    )
