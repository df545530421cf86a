"""A panel is the same picture as SVG and with matplotlib: in mm, outlines over pixels that stay sharp."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from sam2_3dmed.report.panels import CLASS_COLOURS, WHITEST, Outline, Panel, class_colour, draw_panel, grey, panel_svg

SVG = "{http://www.w3.org/2000/svg}"
SQUARE = [np.array([[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]])]


def panel(**changes) -> Panel:
    pixels = np.zeros((4, 3, 3), dtype=np.uint8)
    pixels[0, 2] = (10, 20, 30)
    given = {"title": "t", "description": "d", "pixels": pixels, "height_mm": 2.0, "width_mm": 0.5} | changes
    return Panel(**given)


def test_the_svg_is_in_millimetres_and_its_image_exact() -> None:
    root = ElementTree.fromstring(panel_svg(panel()))
    assert root.get("viewBox") == "0 0 1.5 8"
    image = root.find(f"{SVG}image")
    assert (image.get("width"), image.get("height")) == ("1.5", "8")
    assert "pixelated" in image.get("style")
    kind, _, content = image.get("href").partition(",")
    assert kind == "data:image/png;base64"
    pixels = imread(io.BytesIO(base64.b64decode(content)))[..., :3]
    assert (pixels * 255).round().astype(int)[0, 2].tolist() == [10, 20, 30]
    assert pixels.shape == (4, 3, 3)


def test_outlines_are_a_pixel_wide_at_any_zoom_and_on_the_pixels_edges() -> None:
    outlines = [Outline(SQUARE, "#E69F00"), Outline(SQUARE, "#FFFFFF", dashed=True), Outline([], "#000000")]
    solid, dashed = ElementTree.fromstring(panel_svg(panel(outlines=outlines))).findall(f"{SVG}path")
    assert solid.get("d") == "M0.5 2L1 2L1 4L0.5 4L0.5 2"
    assert solid.get("vector-effect") == dashed.get("vector-effect") == "non-scaling-stroke"
    assert solid.get("stroke-width") == "1"
    assert solid.get("stroke-dasharray") is None
    assert dashed.get("stroke-dasharray")
    assert (solid.get("stroke"), dashed.get("stroke")) == ("#E69F00", "#FFFFFF")


def test_what_it_says_cannot_break_out() -> None:
    text = panel_svg(panel(description='"><script>alert(1)</script>'))
    assert "<script" not in text
    assert ElementTree.fromstring(text).get("aria-label") == '"><script>alert(1)</script>'


def test_white_is_kept_for_the_truth() -> None:
    assert grey(np.array([[0.0, 1.0]])).tolist() == [[[0] * 3, [round(255 * WHITEST)] * 3]]


def test_classes_beyond_the_colours_start_again() -> None:
    assert class_colour(0) == class_colour(len(CLASS_COLOURS)) == CLASS_COLOURS[0]


def test_matplotlib_draws_the_same() -> None:
    figure = Figure(figsize=(0.375, 2), dpi=80)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_panel(axes, panel(title="", outlines=[Outline(SQUARE, "#E69F00")]))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.shape[:2] == (160, 30)
    assert pixels[20, 25].tolist() == [10, 20, 30]
    orange = np.argwhere(np.abs(pixels.astype(int) - (230, 159, 0)).max(axis=-1) < 60)
    # 20 pixels a mm: x 0.5 to 1, y 2 to 4
    assert orange.min(axis=0).tolist() == pytest.approx([40, 10], abs=1.5)
    assert orange.max(axis=0).tolist() == pytest.approx([80, 20], abs=1.5)
