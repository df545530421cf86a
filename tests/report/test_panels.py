"""A panel is the same picture as SVG and with matplotlib; outlines run along pixel edges, every border once."""

import base64
import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from sam2_3dmed.report.build import environment
from sam2_3dmed.report.panels import (
    CLASS_COLOURS,
    WHITEST,
    Outline,
    Panel,
    all_outlines,
    class_colour,
    class_outlines,
    draw_panel,
    grey,
)

SVG = "{http://www.w3.org/2000/svg}"
SQUARE = [np.array([[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]])]


def panel(**changes) -> Panel:
    pixels = np.zeros((4, 3, 3), dtype=np.uint8)
    pixels[0, 2] = (10, 20, 30)
    given = {"title": "t", "description": "d", "pixels": pixels, "height_mm": 2.0, "width_mm": 0.5} | changes
    return Panel(**given)


def panel_svg(panel: Panel) -> str:
    return environment().get_template("panel.html").module.panel_svg(panel)


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


def edges(lines) -> list[tuple]:
    """The unit edges that lines run along."""
    found = []
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line[:-1].tolist(), line[1:].tolist(), strict=True):
            assert (x0 == x1) != (y0 == y1), "along the grid, and of some length"
            count = abs(x1 - x0) + abs(y1 - y0)
            points = [(x0 + (x1 - x0) * i // count, y0 + (y1 - y0) * i // count) for i in range(count + 1)]
            found += [tuple(sorted(pair)) for pair in itertools.pairwise(points)]
    return found


def test_a_pixel_is_a_closed_square() -> None:
    classes = np.zeros((3, 4), dtype=int)
    classes[1, 2] = 1
    (line,) = all_outlines(classes)
    assert line.tolist()[0] == line.tolist()[-1]
    assert {tuple(point) for point in line.tolist()} == {(2, 1), (3, 1), (3, 2), (2, 2)}
    assert len(line) == 5  # corners only


def test_a_mask_that_fills_the_picture_is_closed_at_its_edge() -> None:
    (line,) = all_outlines(np.ones((2, 5), dtype=int))
    assert {tuple(point) for point in line.tolist()} == {(0, 0), (5, 0), (5, 2), (0, 2)}


def test_a_hole_has_its_own_line() -> None:
    classes = np.ones((5, 5), dtype=int)
    classes[2, 2] = 0
    assert sorted(len(edges([line])) for line in all_outlines(classes)) == [4, 20]


def test_a_shared_border_belongs_to_the_higher_class() -> None:
    classes = np.array([[1, 1, 2, 2]])
    first, second = class_outlines(classes, 2)
    middle = ((2, 0), (2, 1))
    assert middle not in edges(first)
    assert middle in edges(second)
    assert len(edges(first)) == 5
    assert len(edges(second)) == 6


def test_the_border_of_two_classes_is_one_line_where_they_touch() -> None:
    """A solid line under a dashed one of the same border drawn twice, half a dash apart, would look solid."""
    found = edges(all_outlines(np.array([[1, 2], [1, 2]])))
    assert len(found) == len(set(found)) == 10


def test_nothing_to_outline() -> None:
    assert all_outlines(np.zeros((3, 3), dtype=int)) == []
    assert class_outlines(np.zeros((3, 3), dtype=int), 2) == [[], []]


@given(arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 3)))
def test_every_border_is_drawn_once_and_nothing_else(classes) -> None:
    padded = np.pad(classes, 1)
    borders = {((x, y), (x + 1, y)) for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()}
    borders |= {((x, y), (x, y + 1)) for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()}
    found = edges(all_outlines(classes))
    assert len(found) == len(set(found))
    assert set(found) == borders
    by_class = [edge for lines in class_outlines(classes, 3) for edge in edges(lines)]
    assert len(by_class) == len(set(by_class))
    assert set(by_class) == borders


@pytest.mark.parametrize("size", [1, 6])
def test_a_line_ends_only_where_an_odd_number_of_borders_meets(size: int) -> None:
    classes = np.kron(np.array([[1, 2], [3, 0]]), np.ones((size, size), dtype=int))
    ends = [tuple(line[i].tolist()) for line in all_outlines(classes) for i in (0, -1) if (line[0] != line[-1]).any()]
    assert sorted(ends) == sorted([(size, 0), (0, size)])
