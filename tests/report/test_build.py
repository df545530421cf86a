"""From a run folder to a page that a browser draws: the pixels of the surfaces, the table, a phone, no complaint."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.interface import Auxiliary
from sam2_3dmed.report import build
from sam2_3dmed.report.build import write_report
from sam2_3dmed.report.charts import distance_map

READY = "document.getElementById('viewer').dataset.ready"
SIZES = [(1280, 900), (390, 844)]


def test_the_page_and_its_figures(page: Path) -> None:
    run = page.parent
    assert page.name == "report.html"
    assert 2_000_000 < page.stat().st_size < 6_000_000  # NiiVue alone is 2.3 MB
    stems = {path.stem for path in (run / "figures").glob("*.svg")}
    assert stems == {path.stem for path in (run / "figures").glob("*.png")}
    assert {"curves_train", "curves_validation", "curves_learning_rate", "distribution_dice"} <= stems
    for rank in ("best", "median", "worst"):
        assert {f"{kind}_{rank}" for kind in ("slices", "dice", "positions", "surfaces")} <= stems


def test_what_the_model_says_is_kept(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time no model is needed."""
    run = page.parent
    kept = Auxiliary.read(run / "auxiliary", "two")
    assert kept.boundary.array.dtype == np.uint8
    assert len(kept.positions[0].slices) == 3
    monkeypatch.setattr(build, "load_model", None)
    before = page.read_bytes()
    assert write_report(run).read_bytes() == before, "and the page is the same"


def test_a_run_without_its_model_or_a_mask_shows_the_rest(run: Path) -> None:
    (run / "model.safetensors").unlink()
    (run / "predictions" / "three.nii.gz").write_bytes(b"broken")
    text = write_report(run, out=run / "deep" / "page.html").read_text()
    assert "no boundary map and relative positions" in text
    assert "P_bd" not in text
    assert "surfaces-data" in text
    assert "three is not shown: " in text
    assert "<h3>best: two" in text
    assert "<h3>worst" not in text


def test_masks_that_are_gone_are_counted(run: Path, data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    shutil.rmtree(moved / "predictions")
    evaluation = moved / "evaluation" / "cases.json"
    evaluation.write_text(evaluation.read_text().replace("predictions", "gone"))
    text = write_report(moved, data).read_text()
    assert "3 of 3 cases: mask or label file is no longer where it was" in text
    assert "Every case" in text


def test_a_page_that_cannot_be_written(run: Path) -> None:
    (run / "file").touch()
    shutil.rmtree(run / "evaluation")  # which would only take time
    with pytest.raises(DataError, match="cannot be written"):
        write_report(run, out=run / "file" / "page.html")


def close_to(pixels, colours) -> int:
    """How many pixels have the hue of one of the colours, however they are lit."""
    bright = pixels.max(axis=-1, keepdims=True)
    hue = pixels / np.maximum(bright, 1e-6)
    far = np.min([np.abs(hue - np.array(colour) / max(colour)).max(axis=-1) for colour in colours], axis=0)
    return int(((far < 0.12) & (bright[..., 0] > 0.15)).sum())


@pytest.mark.browser
@pytest.mark.slow
class TestInChromium:
    @pytest.mark.parametrize(("width", "height"), SIZES)
    def test_surfaces_are_drawn_in_their_colours(self, browser, page: Path, width: int, height: int) -> None:
        browser.open(page, width, height, READY)
        browser.ask("document.getElementById('viewer').scrollIntoView()")
        near, far = distance_map()(0.0)[:3], distance_map()(0.9)[:3]  # 4.5 mm on a scale that ends at 5
        orange, blue = (0.902, 0.624, 0.0), (0.337, 0.706, 0.914)
        size = None
        expected = {  # case, what is shown: colours that are there, colours that are not
            ("best", "prediction distance"): ([near], [far, orange]),  # equal to the truth
            ("worst", "prediction distance"): ([far], [blue]),
            ("worst", "truth class"): ([orange, blue], [far]),
        }
        for (case, show), (present, absent) in expected.items():
            for name, value in (("case", case), ("show", show)):
                browser.ask(
                    f"(() => {{ const e = document.getElementById('viewer-{name}'); e.value = '{value}';"
                    "e.dispatchEvent(new Event('change')); })()"
                )
            browser.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            pixels = browser.picture("#viewer")
            size = pixels.shape[0] * pixels.shape[1]
            assert (pixels.min(axis=-1) > 0.99).mean() > 0.3, "on white"
            for colour in present:
                assert close_to(pixels, [colour]) > 0.01 * size, (case, show, colour)
            for colour in absent:
                assert close_to(pixels, [colour]) < 0.01 * size, (case, show, colour)
        assert browser.errors == []

    @pytest.mark.parametrize(("width", "height"), SIZES)
    def test_nothing_is_asked_for_and_nothing_overflows(self, browser, page: Path, width: int, height: int) -> None:
        browser.open(page, width, height, READY)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.requests[0] == page.resolve().as_uri()
        assert all(address.startswith(("data:", "blob:")) for address in browser.requests[1:])
        assert browser.errors == []

    def test_the_browser_would_have_told(self, browser, tmp_path: Path) -> None:
        broken = tmp_path / "broken.html"
        broken.write_text("<!doctype html><script>console.error('a'); undefined.b</script><img src='none.png'>")
        browser.open(broken, 400, 300)
        assert len(browser.errors) == 3
        assert browser.requests[-1].endswith("none.png")

    def test_the_table_sorts_and_filters(self, browser, page: Path, hostile: str) -> None:
        browser.open(page, 1280, 900, READY)
        names = (
            "Array.from(document.querySelectorAll('#cases tbody tr:not([hidden])'), (r) => r.cells[0].dataset.value)"
        )
        click = (
            "Array.from(document.querySelectorAll('#cases th button')).find((b) => b.textContent === 'dice').click()"
        )
        assert browser.ask(names) == [hostile, "two", "three"]
        browser.ask(click)
        assert browser.ask(names) == ["three", hostile, "two"]
        browser.ask(click)
        assert browser.ask(names) == ["two", hostile, "three"]
        assert browser.ask("document.querySelector('#cases th[aria-sort]').getAttribute('aria-sort')") == "descending"
        browser.ask(
            "(() => { const e = document.getElementById('class-filter'); e.value = '';"
            "e.dispatchEvent(new Event('change')); })()"
        )
        assert len(browser.ask(names)) == 12
