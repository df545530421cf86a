"""Regions and the ignore label in scores, as nnU-Net's `compute_metrics` counts them."""

import json
import math

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import evaluate_folders, read_class_names
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.evaluation.paper_style import paper_style
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume

BRATS = LabelScheme({2: "whole", 1: "core", 3: "enhancing"}, regions={2: (1, 2, 3), 1: (1, 3), 3: (3,)}, ignore=4)


def nnunet_scores(prediction, truth, members, ignore):
    """Dice and IoU by nnU-Net's definition (nnunetv2 2.8.1, evaluation/evaluate_predictions.py)."""
    used = truth != ignore
    reference, predicted = np.isin(truth, members), np.isin(prediction, members)
    tp = (reference & predicted & used).sum()
    fp = (~reference & predicted & used).sum()
    fn = (reference & ~predicted & used).sum()
    return (2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)) if tp + fp + fn else (math.nan, math.nan)


def random_maps(seed):
    """Labels of 0 to 4 in blocks, of which 4 is not annotated, and a prediction of 0 to 3 that is right in parts."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (4, 5, 3)).repeat(3, 0).repeat(3, 1).repeat(2, 2).astype(np.uint8)
    noise = rng.integers(0, 4, truth.shape).astype(np.uint8)
    return np.where((rng.random(truth.shape) < 0.6) & (truth < 4), truth, noise), truth


PLAIN = LabelScheme({1: "a", 2: "b", 3: "c"}, ignore=4)
OF_NNUNET = {
    (1, 2, 3): (0.8942148760330578, 0.8086696562032885),
    (1, 3): (0.7718865598027127, 0.6285140562248996),
    (3,): (0.726530612244898, 0.5705128205128205),
    (1,): (0.5981308411214953, 0.4266666666666667),
    (2,): (0.6416040100250626, 0.47232472324723246),
}
"""Dice and IoU on `random_maps(0)` that nnunetv2's own `compute_metrics` printed; 4 is its ignore label."""


@pytest.mark.parametrize("scheme", [BRATS, PLAIN])
def test_scores_that_nnunet_itself_has_given(scheme):
    for row, value in zip(case_metrics(*random_maps(0), scheme, (1, 1, 1)), scheme, strict=False):
        expected = OF_NNUNET[scheme.members(value)]
        assert (row.scores["dice"], row.scores["iou"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scheme", [BRATS, PLAIN])
def test_dice_and_iou_are_those_of_nnunet(seed, scheme):
    prediction, truth = random_maps(seed)
    rows = case_metrics(prediction, truth, scheme, (1, 1, 1), Scoring(empty="nan"))
    for row, value in zip(rows, scheme, strict=False):
        expected = nnunet_scores(prediction, truth, scheme.members(value), 4)
        assert (row.scores["dice"], row.scores["iou"]) == pytest.approx(expected, rel=1e-12)
        assert (row.name, row.label) == (scheme[value], value)


def ignored_maps():
    """The prediction of class 1 is right, but reaches into the two slices that nobody annotated (value 2)."""
    truth = np.zeros((20, 20, 10), np.uint8)
    truth[5:15, 5:15, 3:7] = 1
    truth[:, :, :2] = 2
    prediction = (truth == 1).astype(np.uint8)
    prediction[3:15, 3:15, :2] = 1
    return prediction, truth


@pytest.mark.parametrize("surface", ["surfel", "voxel"])
def test_ignored_voxels_count_in_no_metric(surface):
    row, mean = case_metrics(*ignored_maps(), LabelScheme({1: "tumour"}, ignore=2), (1, 1, 2), Scoring((1,), surface))
    best = dict.fromkeys(["dice", "iou", "nsd_1mm", "sensitivity", "precision", "lesion_f1"], 1.0)
    best |= dict.fromkeys(["hd95_mm", "hd100_mm", "assd_mm", "volume_error_ml", "volume_error_percent"], 0.0)
    assert row.scores == mean.scores == best
    assert (row.truth_mm3, row.prediction_mm3) == (800, 800)
    assert (row.lesions.truth, row.lesions.found, row.lesions.false_positive) == (1, 1, 0)


def test_ignored_slices_are_no_slices_in_paper_style():
    rows = paper_style(*ignored_maps(), LabelScheme({1: "tumour"}, ignore=2), (1, 1, 2), 2, Scoring((1,)))
    assert {row.scores["dice"] for row in rows} == {1.0}
    prediction, truth = ignored_maps()
    prediction[..., 3] = 0  # one of four slices is missed; eight are annotated
    found = {
        row.averaging: row.scores["dice"]
        for row in paper_style(prediction, truth, LabelScheme({1: "tumour"}, ignore=2), (1, 1, 2), 2, Scoring((1,)))
    }
    assert found["slices_with_truth"] == pytest.approx(3 / 4)
    assert found["all_slices"] == pytest.approx(7 / 8)


def test_a_case_that_nobody_annotated_is_an_empty_one():
    truth = np.full((4, 4, 4), 2, np.uint8)
    scheme = LabelScheme({1: "tumour"}, ignore=2)
    for prediction in (truth * 0, truth // 2):
        (row, _) = case_metrics(prediction, truth, scheme, (1, 1, 1))
        assert (row.presence, row.scores["dice"]) == ("absent", 1)
    assert paper_style(truth // 2, truth, scheme, (1, 1, 1), 2, Scoring())[0].scores["dice"] == 1


def test_regions_by_hand():
    """Whole is 1 and 2, core is 2. The prediction takes half of the core for the rest of the whole."""
    truth = np.zeros((8, 4, 4), np.uint8)
    truth[1:7] = 1
    truth[2:6] = 2
    prediction = truth.copy()
    prediction[2:4] = 1
    scheme = LabelScheme({1: "whole", 2: "core"}, regions={1: (1, 2), 2: (2,)})
    whole, core, mean, union = case_metrics(prediction, truth, scheme, (1, 1, 1))
    assert (whole.scores["dice"], whole.truth_mm3) == (1, 6 * 16)
    assert core.scores["dice"] == pytest.approx(2 * 2 / (4 + 2))
    assert core.scores["hd100_mm"] == 2
    assert mean.scores["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert union.scores["dice"] == 1


@pytest.fixture
def folders(tmp_path):
    """A folder of predictions and one of labels, with one case."""
    for folder, array in zip(("predictions", "labels"), ignored_maps(), strict=True):
        (tmp_path / folder).mkdir()
        Volume(array, np.eye(4)).write(tmp_path / folder / "a.nii.gz")
    return tmp_path / "predictions", tmp_path / "labels"


def test_a_dataset_json_with_an_ignore_label(folders, tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "tumour": 1, "ignore": 2}}))
    summary = evaluate_folders(*folders, file).summary()
    assert summary["labels"] == {"1": "tumour"}
    assert summary["ignore_label"] == 2
    assert "regions" not in summary
    assert [row["dice"]["mean"] for row in summary["results"]] == [1, 1]
    own = evaluate_folders(folders[1], folders[1], file)  # another reader's label may hold the value, too
    assert own.cases[0].rows[0].scores["dice"] == 1


def test_a_dataset_json_with_regions(tmp_path):
    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
        array = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) % 4
        Volume(array, np.eye(4)).write(tmp_path / folder / "a.nii.gz")
    file = tmp_path / "dataset.json"
    labels = {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": 3}
    file.write_text(json.dumps({"labels": labels, "regions_class_order": [2, 1, 3]}))
    summary = evaluate_folders(tmp_path / "predictions", tmp_path / "labels", file).summary()
    assert summary["labels"] == {"2": "whole", "1": "core", "3": "enhancing"}
    assert summary["regions"] == {"2": [1, 2, 3], "1": [1, 3], "3": [3]}
    assert [row["class"] for row in summary["results"]] == ["whole", "core", "enhancing", "mean", "foreground"]
    assert {row["dice"]["mean"] for row in summary["results"]} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"whole": [1, 2], "core": 2}, 'region-based labels need "regions_class_order"'),
        ({"tumour": 1, "ignore": 1}, "gives the value 1 twice"),
        ({"whole": [1, 2], "rest": [2, 1]}, r"gives the value \[1, 2\] twice"),
        ({"whole": [1, 2], "core": 2, "ignore": 1}, '"ignore" one value that no class has'),
        ({"tumour": 1, "ignore": [2, 3]}, '"ignore" one value that no class has'),
        ({"all": [0, 1]}, "holds 0"),
        ({"none": []}, r"not 'none' with \[\]"),
        ({"deep": [[1]]}, r"not 'deep' with \[\[1\]\]"),
        ({"ignore": 1}, "no class besides the background"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, **content}}))
    with pytest.raises(DataError, match=rf"dataset\.json: no class names: .*{message}"):
        read_class_names(file)


@pytest.mark.parametrize("order", [None, [1], [1, 1], [1, 3], ["a", 2], {}])
def test_an_order_of_regions_that_cannot_be_used(tmp_path, order):
    file = tmp_path / "dataset.json"
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    file.write_text(json.dumps({"labels": labels, "regions_class_order": order}))
    with pytest.raises(DataError, match=r'need "regions_class_order": .* of 1, 2$'):
        read_class_names(file)


def test_a_list_of_one_value_is_no_region(tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "tumour": [2], "organ": 1}}))
    found = read_class_names(file)
    assert (found, found.regions, found.ignore) == ({1: "organ", 2: "tumour"}, {}, None)
