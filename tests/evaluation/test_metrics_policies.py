"""What an empty mask costs: by the policy `penalise` everything, by `nan` nothing that a formula does not say."""

import math

import numpy as np
import pytest

from sam2_3dmed.evaluation.metrics import Scoring, case_metrics, dice

EMPTY = np.zeros((3, 4, 12), dtype=bool)  # at 1 mm its diagonal is 13 mm
VOXEL = EMPTY.copy()
VOXEL[1, 1, 1] = True


def score(prediction, truth, spacing_mm=(1, 1, 1), **scoring):
    """The one class of two bool masks."""
    return case_metrics(prediction, truth, {1: "organ"}, spacing_mm, Scoring(**scoring))[0]


def test_dice_alone_penalises():
    assert dice(EMPTY, EMPTY) == 1
    assert dice(EMPTY, VOXEL) == dice(VOXEL, EMPTY) == 0


def test_diagonal_is_that_of_the_whole_volume_in_mm():
    found = score(EMPTY, VOXEL, (4, 3, 2))
    assert (
        found.scores["hd95_mm"]
        == found.scores["hd100_mm"]
        == found.scores["assd_mm"]
        == pytest.approx(math.sqrt(12**2 + 12**2 + 24**2))
    )
    assert score(EMPTY, VOXEL, tolerances_mm=(1000,)).scores["nsd_1000mm"] == 0


SCORES = ("dice", "iou", "sensitivity", "precision", "lesion_f1")
LENGTHS = ("hd95_mm", "hd100_mm", "assd_mm")


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
@pytest.mark.parametrize(
    ("prediction", "truth", "score_", "length_mm", "volume_ml", "percent"),
    [
        pytest.param(EMPTY, EMPTY, 1, 0, 0, 0, id="absent"),
        pytest.param(EMPTY, VOXEL, 0, 13, -0.001, -100, id="missed"),
        pytest.param(VOXEL, EMPTY, 0, 13, 0.001, 100, id="false_positive"),
    ],
)
def test_penalise_leaves_nothing_undefined(prediction, truth, score_, length_mm, volume_ml, percent, surface):
    found = score(prediction, truth, surface=surface)
    assert [found.scores[name] for name in SCORES] == [score_] * 5
    assert [found.scores[name] for name in LENGTHS] == [length_mm] * 3
    assert found.scores["nsd_2mm"] == found.scores["nsd_1mm"] == score_
    assert (found.scores["volume_error_ml"], found.scores["volume_error_percent"]) == (volume_ml, percent)


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
@pytest.mark.parametrize(
    ("prediction", "truth", "defined"),
    [
        (EMPTY, EMPTY, {"volume_error_ml": 0}),
        (
            EMPTY,
            VOXEL,
            {"dice": 0, "iou": 0, "nsd_1mm": 0, "nsd_2mm": 0, "sensitivity": 0, "lesion_f1": 0}
            | {"volume_error_ml": -0.001, "volume_error_percent": -100},
        ),
        (
            VOXEL,
            EMPTY,
            {"dice": 0, "iou": 0, "nsd_1mm": 0, "nsd_2mm": 0, "precision": 0, "lesion_f1": 0}
            | {"volume_error_ml": 0.001},
        ),
    ],
    ids=["absent", "missed", "false_positive"],
)
def test_nan_keeps_what_the_formula_defines(prediction, truth, defined, surface):
    columns = score(prediction, truth, empty="nan", surface=surface).scores
    assert {name: value for name, value in columns.items() if not math.isnan(value)} == defined


def test_policies_differ_only_on_empty_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((2, *rng.integers(1, 8, size=3))) < 0.3
        masks[:, 0, 0, 0] = True
        assert score(*masks, empty="nan") == score(*masks)


def test_mean_is_over_the_classes_that_are_defined():
    truth, prediction = np.zeros((2, 3, 4, 12), dtype=np.uint8)
    truth[0, 0, :4] = prediction[0, 0, 1:5] = 1
    truth[2, 2, 2] = 2
    organ, tumour, cyst, mean, _ = case_metrics(
        prediction, truth, {1: "organ", 2: "tumour", 3: "cyst"}, (1, 1, 1), Scoring(empty="nan")
    )
    assert tumour.scores["dice"] == 0
    assert math.isnan(tumour.scores["hd95_mm"])
    assert math.isnan(cyst.scores["dice"])
    assert (mean.scores["dice"], mean.scores["hd95_mm"]) == (organ.scores["dice"] / 2, organ.scores["hd95_mm"])
    for name in ("dice", "precision", "assd_mm"):
        assert mean.scores[name] == np.nanmean([row.scores[name] for row in (organ, tumour, cyst)])
    _, nothing = case_metrics(prediction, truth, {3: "cyst"}, (1, 1, 1), Scoring(empty="nan"))
    assert math.isnan(nothing.scores["dice"])
