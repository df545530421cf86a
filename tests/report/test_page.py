"""The page is well-formed, loads nothing, says what it shows to those who cannot see it, and escapes every name."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed import report
from sam2_3dmed.report.build import gradient, page_html
from sam2_3dmed.report.charts import Chart, distance_map
from sam2_3dmed.report.contents import RunContents, read_run
from sam2_3dmed.report.planes import CaseReport, Surfaces
from sam2_3dmed.report.surfaces import surface_meshes

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


def test_a_run_without_anything_still_has_a_page(run: Path) -> None:
    for path in (run / "evaluation").iterdir():
        path.unlink()
    html = page_html(read_run(run))
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
    html = page_html(contents, ranked_by="dice")
    cells = re.findall(r'<td data-value="">–</td>', html)
    assert len(cells) >= 2 * 4


def test_a_chart_is_a_figure_with_its_words(run: Path) -> None:
    html = page_html(read_run(run), curves=[Chart("loss <over> epochs", "<svg/>")])
    assert 'alt="loss &lt;over&gt; epochs"' in html
    assert "<figcaption>loss &lt;over&gt; epochs</figcaption>" in html


VENDOR = Path(report.__file__).parent / "vendor"


def case(rank: str = "best", name: str = "a") -> CaseReport:
    masks = np.zeros((2, 9, 9, 9), dtype=bool)
    masks[0, 2:6, 2:6, 2:6] = masks[1, 4:8, 2:6, 2:6] = True
    truth, prediction = surface_meshes(masks[0], masks[1], np.diag([1.0, 1, 2, 1]), 10**6)
    found = Surfaces("organ", "#E69F00", truth, prediction)
    missed = Surfaces("</script>", "#56B4E9", truth, None)
    return CaseReport(rank, name, (), (), (found, missed))


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="surfaces-data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_vendored_script_is_the_published_one() -> None:
    """dist/niivue.umd.js of the npm package @niivue/niivue 0.69.0."""
    content = (VENDOR / "niivue-0.69.0.umd.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert b"</script" not in content.lower()
    assert b"<!--" not in content, "inside a script element it would hide what follows"


def test_its_licences_come_with_it(html: str) -> None:
    assert "Copyright (c) 2021, Niivue" in html
    text = (VENDOR / "LICENSES.txt").read_text()
    assert "Copyright (c) 2021, Niivue" in text
    for part in ("fflate", "gl-matrix", "nifti-reader-js", "zarrita", "numcodecs", "LZ4", "Zstandard", "Blosc"):
        assert re.search(rf"^== .*{part}", text, re.MULTILINE)


def test_meshes_stand_around_the_middle_and_share_it(run: Path) -> None:
    content = data_of(page_html(read_run(run), cases=[case()], limit_mm=2.0))
    surface, missed = content["cases"]["best"]
    assert surface["colour"] == "#E69F00"
    # both boxes together: x 1.5 to 7.5, y 1.5 to 5.5, z 3 to 11
    assert surface["truth"]["low_mm"] == [-3, -2, -4]
    assert surface["prediction"]["low_mm"] == [-1, -2, -4]
    assert "prediction" not in missed
    scale = np.frombuffer(base64.b64decode(content["scale"]), dtype=np.uint8).reshape(256, 3)
    assert scale[255].tolist() == list(distance_map()(1.0, bytes=True)[:3])


def test_no_name_breaks_out_of_the_data(run: Path) -> None:
    html = page_html(read_run(run), cases=[case(name="<img src=x>")])
    assert data_of(html)["cases"]["best"][1]["label"] == "</script>"
    assert "<img src=x" not in html


def test_nothing_to_turn_is_no_viewer(run: Path) -> None:
    html = page_html(read_run(run), cases=[CaseReport("only", "a", (), (), ())])
    assert 'id="surfaces-data"' not in html
    assert 'href="#surfaces"' not in html


def test_a_scale_runs_through_its_map() -> None:
    css = gradient("cividis")
    assert css.count("rgb(") == 5
    assert "rgb(0 34 77)" in css
