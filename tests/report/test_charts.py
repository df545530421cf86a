"""Charts hold the numbers they are given, and their files are the same each time."""

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.report import charts


def line_data(figure, number: int) -> list[list[float]]:
    return figure.axes[0].lines[number].get_xydata().tolist()


def test_missing_values_are_bridged() -> None:
    figure = charts.lines_chart("t", [0, 1, 2], {"dice": [0.5, None, 0.7], "iou": [0.1, 0.2, 0.3]})
    assert line_data(figure, 0) == [[0, 0.5], [2, 0.7]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["dice", "iou"]


def test_losses_may_be_logarithmic_with_plain_numbers() -> None:
    figure = charts.lines_chart("t", [0, 1], {"a": [100, 0.01]}, logarithmic=True)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "0.1" in labels
    assert not any("$" in label for label in labels)


def test_a_dot_a_case_and_the_quartiles_of_those_that_have_a_value() -> None:
    figure = charts.distribution_chart("t", {"a": [1, 2, 3, 4, None, float("nan")], "b": [5], "c": [None]}, "mm")
    axes = figure.axes[0]
    dots = [collection.get_offsets()[:, 1].tolist() for collection in axes.collections]
    assert dots == [[1, 2, 3, 4], [5], []]
    boxes = [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 5]
    assert sorted(set(boxes[0])) == [1.75, 3.25]
    assert axes.get_ylabel() == "mm"


def test_dice_along_the_axis_keeps_its_gaps() -> None:
    scores = np.array([[0.5, np.nan, 1.0]])
    figure = charts.slice_dice_chart("t", scores, ["organ"], marked=2)
    assert np.isnan(line_data(figure, 0)[1][1])
    assert figure.axes[0].lines[1].get_xdata()[0] == 2


TRUE = np.array([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]], dtype=float)


def test_relative_positions_of_a_reversed_slab_are_put_in_order() -> None:
    slabs = [((4, 5, 6), TRUE), ((6, 5, 4), -TRUE)]
    assert charts.position_errors(slabs) == (0, pytest.approx(8 / 6))
    figure = charts.positions_chart("t", slabs)
    matrices = [axes.images[0].get_array().tolist() for axes in figure.axes[:2]]
    assert matrices == [TRUE.tolist()] * 2
    median = next(line for line in figure.axes[2].lines if line.get_label() == "median")
    assert median.get_ydata().tolist() == [-2, -1, 0, 1, 2]


def test_the_error_of_knowing_nothing() -> None:
    error, nothing = charts.position_errors([((0, 1, 2), np.zeros((3, 3)))])
    assert error == nothing == pytest.approx(8 / 6)


def test_the_map_of_distances_grows_lighter() -> None:
    colours = charts.distance_map()(np.linspace(0, 1, 20))[:, :3]
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()
    assert lightness[0] > 0.2


def test_pictures_stand_side_by_side_with_their_scale() -> None:
    pictures = {"a": np.zeros((4, 4, 3), np.uint8), "b": np.full((4, 4, 3), 255, np.uint8)}
    figure = charts.pictures_chart("t", pictures, 5.0)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"] or figure.axes[0].get_title(loc="left") == "a"
    assert figure.axes[-1].get_ylim() == (0, 5)


def test_both_files_are_written_and_the_same_each_time(tmp_path) -> None:
    texts = []
    for name in ("a", "b"):
        figure = charts.lines_chart("t", [0, 1], {"x": [1, 2]})
        texts.append(charts.save_figure(figure, tmp_path / name, "curves"))
        assert {path.name for path in (tmp_path / name).iterdir()} == {"curves.svg", "curves.png"}
    for ending in ("svg", "png"):
        first, second = ((tmp_path / name / f"curves.{ending}").read_bytes() for name in ("a", "b"))
        assert first == second
    assert texts[0] == (tmp_path / "a" / "curves.svg").read_text()


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: cannot be written"):
        charts.save_figure(charts.lines_chart("t", [0], {"x": [1]}), tmp_path / "file", "x")


def test_accuracy_against_cost_has_a_dot_a_system() -> None:
    points = {"a": (10.0, 0.8, (0.7, 0.9), 2e6), "b": (1000.0, 0.9, None, 4e6)}
    figure = charts.cost_chart("t", points, "GFLOP", "mean Dice")
    axes = figure.axes[0]
    dots = {c.get_label(): c for c in axes.collections if not c.get_label().startswith("_")}
    assert {name: dot.get_offsets().tolist() for name, dot in dots.items()} == {
        "a (2 M)": [[10.0, 0.8]],
        "b (4 M)": [[1000.0, 0.9]],
    }
    assert dots["b (4 M)"].get_sizes()[0] > dots["a (2 M)"].get_sizes()[0]
    assert axes.get_xscale() == "log"
