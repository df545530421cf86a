"""The page is well-formed, loads nothing, says what it shows to those who cannot see it, and escapes every name."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sam2_3dmed.report.case_report import Chart
from sam2_3dmed.report.contents import RunContents, read_run
from sam2_3dmed.report.page import Page, page_html

VOID = {"meta", "link", "img", "br", "image"}


class Reader(HTMLParser):
    """Every element with its attributes; complains about what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_nothing_is_loaded(html: str) -> None:
    reader = Reader(html)
    addresses = [
        value for _, attributes in reader.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) > 20
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import", (re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]))
    (policy,) = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "*" not in policy


def test_names_are_text(html: str, hostile: str) -> None:
    images = [attributes for tag, attributes in Reader(html).elements if tag == "img"]
    assert all(image["src"].startswith("data:image/") for image in images)
    assert "<b>organ" not in html
    assert hostile not in html
    assert "one&lt;img src=x onerror=alert(1)&gt;" in html


def test_everything_has_words(html: str) -> None:
    reader = Reader(html)
    assert reader.all("html")[0]["lang"] == "en"
    assert all(image["alt"].strip() for image in reader.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in reader.all("svg"))
    assert {header["scope"] for header in reader.all("th")} == {"col", "row"}
    assert len(reader.all("h1")) == 1
    links = {link["href"][1:] for link in reader.all("a")}
    assert links == {section["id"] for section in reader.all("section")}
    assert len(links) == 7
    assert reader.all("meta")[2]["name"] == "viewport"


def test_every_case_and_class_is_a_row_that_can_be_sorted(html: str) -> None:
    table = re.search(r'<table id="cases">.*?</table>', html, re.DOTALL)[0]
    reader = Reader(table)
    assert len(reader.all("tr")) == 1 + 3 * 4
    assert len(reader.all("button")) == len(reader.all("th")) - 3 * 4
    assert all("data-value" in cell for cell in reader.all("td"))
    assert table.count('class="badge"') == 3 * 4


def bare(run: Path, **changes) -> Page:
    given = {"curves": (), "distributions": (), "cases": (), "stills": {}, "ranked_by": "", "limit_mm": 1.0} | changes
    return Page(contents=read_run(run), **given)


def test_a_run_without_anything_still_has_a_page(run: Path) -> None:
    for path in (run / "evaluation").iterdir():
        path.unlink()
    page = bare(run)
    html = page_html(page)
    reader = Reader(html)
    assert reader.all("section") == []
    assert "no evaluation here" in html
    assert [attributes["class"] for attributes in reader.all("aside")] == ["notes"]


def test_what_is_undefined_is_a_dash(run: Path) -> None:
    contents: RunContents = read_run(run)
    first = contents.cases[0]
    for row in first.rows:
        row["dice"] = None
    for result in contents.summary["results"]:
        result["dice"] |= {"mean": None, "interval_95": None}
    html = page_html(Page(contents, (), (), (), {}, "dice", 1.0))
    cells = re.findall(r'<td data-value="">–</td>', html)
    assert len(cells) >= 2 * 4


def test_a_chart_is_a_figure_with_its_words(run: Path) -> None:
    html = page_html(bare(run, curves=[Chart("loss <over> epochs", "<svg/>")]))
    assert 'alt="loss &lt;over&gt; epochs"' in html
    assert "<figcaption>loss &lt;over&gt; epochs</figcaption>" in html
