"""The report of a run that somebody sent: nothing of it becomes markup or a script, or is written elsewhere."""

import base64
import csv
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.report.build import page_html, write_report
from sam2_3dmed.report.contents import read_run

SCRIPT = "<script>alert(1)</script>"
NAMES = ["a/b", "../../c", "$\\frac{1}$", "_d", "=1+1", '"e"', SCRIPT, "100 % &amp;", "x" * 200]


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def elements(html: str) -> list[tuple[str, list[str]]]:
    """The tags of a page, each with the names of its attributes."""
    found: list[tuple[str, list[str]]] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append((tag, [name for name, _ in attributes]))
    reader.feed(html)
    return found


@pytest.fixture
def summary(run: Path) -> Path:
    return run / "evaluation" / "summary.json"


def test_only_our_own_scripts_run(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    sources = re.search(r"script-src ([^;]*);", policy)[1].split()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 2
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(sources) == {f"'sha256-{digest}'" for digest in hashes}
    assert "unsafe-eval" not in policy
    assert not [name for _, attributes in elements(html) for name in attributes if name.startswith("on")]


def test_class_names_of_every_kind(run: Path, summary: Path) -> None:
    """In the curves and in the evaluation."""
    header = ["epoch", *(f"validation/dice_{name}" for name in NAMES)]
    with (run / "curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, [0, *[0.5] * len(NAMES)], [1, *[0.6] * len(NAMES)]])

    def named(rows: list[dict[str, Any]]) -> None:
        rows += [rows[0] | {"class": name} for name in NAMES]

    edit(summary, lambda content: named(content["results"]))
    edit(run / "evaluation" / "cases.json", lambda content: [named(case["rows"]) for case in content])
    html = write_report(run).read_text(encoding="utf-8")
    assert SCRIPT not in html
    assert [tag for tag, _ in elements(html) if tag == "script"] == ["script"] * 3
    assert "curves_validation.svg" in {path.name for path in (run / "figures").iterdir()}
    assert {path.suffix for path in (run / "figures").iterdir()} == {".svg", ".png"}


@pytest.mark.parametrize("name", ["../../../stolen", SCRIPT])
def test_metrics_are_no_paths_and_no_markup(run: Path, summary: Path, name: str) -> None:
    outside = {path for path in run.parent.rglob("*") if run not in path.parents}
    edit(summary, lambda content: content["metrics"].update({name: content["metrics"]["dice"]}))
    assert SCRIPT not in write_report(run).read_text(encoding="utf-8")
    assert {path for path in run.parent.rglob("*") if run not in path.parents} == outside
    assert all(path.is_file() for path in (run / "figures").iterdir())


@pytest.mark.parametrize("value", [SCRIPT, [SCRIPT], {"a": SCRIPT}, True, 1e300, "0.5"])
def test_numbers_are_numbers(run: Path, summary: Path, value: object) -> None:
    whole = summary.read_text()
    for change in (
        lambda content: content["results"][0]["dice"].update(mean=value),
        lambda content: content["results"][0]["dice"].update(interval_95=[0.1, value]),
    ):
        edit(summary, change)
        with pytest.raises(DataError, match=r"summary\.json: not what an evaluation writes: 'dice' of a class$"):
            read_run(run)
        summary.write_text(whole)
    edit(run / "evaluation" / "cases.json", lambda content: content[0]["rows"][0].update(dice=value))
    with pytest.raises(DataError, match=r"cases\.json: not what an evaluation writes: a row of '"):
        read_run(run)


def test_counts_are_escaped(run: Path, summary: Path) -> None:
    edit(summary, lambda content: content["results"][0].update(missed=SCRIPT))
    edit(summary, lambda content: content.update(empty_masks=SCRIPT))
    html = page_html(read_run(run), ranked_by="dice")
    assert SCRIPT not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3


@pytest.mark.parametrize("name", ["../../stolen", "/stolen", "a/b", "", ".."])
def test_cases_are_no_paths(run: Path, name: str) -> None:
    edit(run / "evaluation" / "cases.json", lambda content: content[0].update(case=name))
    with pytest.raises(DataError, match=r"cases\.json: not what an evaluation writes: .* is no name of a case$"):
        read_run(run)


@pytest.mark.parametrize("folder", ["figures", "auxiliary"])
def test_nothing_is_written_through_a_link(run: Path, folder: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(run / folder, ignore_errors=True)
    (run / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{folder}: is a link to a folder outside the run"):
        write_report(run)
    assert list((tmp_path / "elsewhere").iterdir()) == []
