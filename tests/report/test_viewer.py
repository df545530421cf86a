"""The viewer's part of the page: meshes as data, the vendored script whole and with its licences."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from sam2_3dmed.report import viewer
from sam2_3dmed.report.case_report import CaseReport, Surfaces
from sam2_3dmed.report.charts import distance_map
from sam2_3dmed.report.meshes import surface_meshes

VENDOR = Path(viewer.__file__).parent / "vendor"


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


def test_its_licences_come_with_it() -> None:
    text = (VENDOR / "LICENSES.txt").read_text()
    assert "Copyright (c) 2021, Niivue" in text
    for part in ("fflate", "gl-matrix", "nifti-reader-js", "zarrita", "numcodecs", "LZ4", "Zstandard", "Blosc"):
        assert re.search(rf"^== .*{part}", text, re.MULTILINE)
    assert "Copyright (c) 2021, Niivue" in viewer.viewer_section([case()], 2.0)


def test_meshes_stand_around_the_middle_and_share_it() -> None:
    content = data_of(viewer.viewer_section([case()], 2.0))
    surface, missed = content["cases"]["best"]
    assert surface["colour"] == "#E69F00"
    # both boxes together: x 1.5 to 7.5, y 1.5 to 5.5, z 3 to 11
    assert surface["truth"]["low_mm"] == [-3, -2, -4]
    assert surface["prediction"]["low_mm"] == [-1, -2, -4]
    assert "prediction" not in missed
    scale = np.frombuffer(base64.b64decode(content["scale"]), dtype=np.uint8).reshape(256, 3)
    assert scale[255].tolist() == list(distance_map()(1.0, bytes=True)[:3])


def test_no_name_breaks_out_of_the_data() -> None:
    html = viewer.viewer_section([case(name="<img src=x>")], 2.0)
    assert data_of(html)["cases"]["best"][1]["label"] == "</script>"
    assert "<img" not in html.split('id="surfaces-data"')[0]
    assert json.loads(viewer.json_in_html({"a": "<!-- </script>"})) == {"a": "<!-- </script>"}
    assert "<" not in viewer.json_in_html({"a": "<"})


def test_nothing_to_turn_is_no_viewer() -> None:
    assert viewer.viewer_section([], 1.0) == ""
    assert viewer.viewer_section([CaseReport("only", "a", (), (), ())], 1.0) == ""


def test_a_scale_runs_through_its_map() -> None:
    html = viewer.scale_html("cividis")
    assert html.count("rgb(") == 5
    assert "rgb(0 34 77)" in html
