import math

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.evaluation.paper_style import AVERAGINGS, paper_style, summarise_paper_style

SPACING_MM = (2.0, 2.0, 5.0)


def maps():
    """Five slices along z: one hit exactly, one moved by a voxel, one missed, one a false positive, one empty."""
    prediction, truth = np.zeros((2, 8, 8, 5), dtype=np.uint8)
    truth[2:5, 2:5, :3] = 1
    prediction[2:5, 2:5, 0] = prediction[3:6, 2:5, 1] = prediction[2:5, 2:5, 3] = 1
    return prediction, truth


def rows_of(empty="penalise"):
    rows = paper_style(*maps(), {1: "organ"}, SPACING_MM, 2, Scoring((1.0,), empty=empty))
    return {(row.averaging, row.unit): row for row in rows}


def test_dice_and_iou_by_hand():
    rows = rows_of()
    dice, iou = [1, 2 / 3, 0, 0], [1, 1 / 2, 0, 0]
    assert len(rows) == 8
    for unit in ("mm", "voxel"):
        assert rows["volume", unit].scores["dice"] == pytest.approx(2 * 15 / (27 + 27))
        assert rows["slices_with_either", unit].scores["dice"] == pytest.approx(sum(dice) / 4)
        assert rows["slices_with_truth", unit].scores["dice"] == pytest.approx(sum(dice) / 3)
        assert rows["all_slices", unit].scores["dice"] == pytest.approx((sum(dice) + 1) / 5)
        assert rows["all_slices", unit].scores["iou"] == pytest.approx((sum(iou) + 1) / 5)


@pytest.mark.parametrize(
    ("unit", "moved", "diagonal", "nsd"), [("mm", 2, 16 * 2**0.5, 0.5), ("voxel", 1, 8 * 2**0.5, 1)]
)
def test_distances_by_hand(unit, moved, diagonal, nsd):
    """Half of the moved slice's 8 + 8 border pixels lie on the other border, half are a voxel of 2 mm away."""
    rows = rows_of()
    assert rows["slices_with_either", unit].scores["hd95"] == pytest.approx((0 + moved + 2 * diagonal) / 4)
    assert rows["slices_with_truth", unit].scores["hd95"] == pytest.approx((0 + moved + diagonal) / 3)
    assert rows["slices_with_either", unit].scores["nsd_1"] == pytest.approx((1 + nsd) / 4)
    assert rows["all_slices", unit].scores["hd95"] == pytest.approx((0 + moved + 2 * diagonal + 0) / 5)


def test_volume_is_what_the_metrics_give_by_voxels():
    row, _ = case_metrics(*maps(), {1: "organ"}, SPACING_MM, Scoring((1,), "voxel"))
    found = rows_of()["volume", "mm"]
    columns = {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd_1": "nsd_1mm"}
    assert found.scores == {name: row.scores[column] for name, column in columns.items()}
    row, _ = case_metrics(*maps(), {1: "organ"}, (1, 1, 1), Scoring((1,), "voxel"))
    found = rows_of()["volume", "voxel"]
    assert (found.scores["hd95"], found.scores["nsd_1"]) == (row.scores["hd95_mm"], row.scores["nsd_1mm"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis(axis):
    turned = [np.moveaxis(array, 2, axis) for array in maps()]
    spacing_mm = list(SPACING_MM[:2])
    spacing_mm.insert(axis, SPACING_MM[2])
    rows = paper_style(*turned, {1: "organ"}, spacing_mm, axis, Scoring((1.0,)))
    assert [row.scores for row in rows] == [row.scores for row in rows_of().values()]


def test_nan_leaves_out_what_is_undefined():
    rows = rows_of("nan")
    assert rows["slices_with_either", "mm"].scores["hd95"] == pytest.approx((0 + 2) / 2)
    assert rows["all_slices", "mm"].scores["dice"] == pytest.approx((1 + 2 / 3) / 4)
    missing = paper_style(*maps(), {2: "tumour"}, SPACING_MM, 2, Scoring((1.0,), empty="nan"))
    assert all(math.isnan(value) for row in missing for value in row.scores.values())


def test_absent_class_is_perfect():
    for row in paper_style(*maps(), {2: "tumour"}, SPACING_MM, 2, Scoring((1.0,))):
        assert row.scores == {"dice": 1, "iou": 1, "hd95": 0, "nsd_1": 1}


def test_summary_is_the_mean_over_cases():
    rows, perfect = paper_style(*maps(), {1: "organ"}, SPACING_MM, 2, Scoring((1.0,))), maps()[1]
    others = paper_style(perfect, perfect, {1: "organ"}, SPACING_MM, 2, Scoring((1.0,)))
    summary = summarise_paper_style([rows, others])
    first = summary["results"][0]
    assert (first["class"], first["averaging"], first["unit"]) == ("organ", "volume", "mm")
    assert first["dice"] == pytest.approx((30 / 54 + 1) / 2)
    assert set(summary["averagings"]) == set(AVERAGINGS)
    nothing = paper_style(*maps(), {2: "tumour"}, SPACING_MM, 2, Scoring((1.0,), empty="nan"))
    assert summarise_paper_style([nothing])["results"][0]["dice"] is None


def test_refuses_what_the_metrics_refuse():
    with pytest.raises(VolumeError, match="three positive numbers"):
        paper_style(*maps(), {1: "organ"}, (1, 1, 0), 2, Scoring((1.0,)))
