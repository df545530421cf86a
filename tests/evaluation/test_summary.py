from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.evaluation.cases import CaseResult, Evaluation, summary_table
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics

LABELS = {1: "organ", 2: "tumour"}


def box(length):
    array = np.zeros((4, 4, 20), dtype=np.uint8)
    array[1:3, 1:3, 2 : 2 + length] = 1
    return array


def summary_of(predictions, truth, labels=None, **scoring):
    """Cases named "0", "1", ..."""
    labels, options = labels or {1: "organ"}, Scoring(**scoring)
    rows = [case_metrics(prediction, truth, labels, (1, 1, 1), options) for prediction in predictions]
    cases = [CaseResult(str(n), Path(), Path(), (1.0, 1.0, 1.0), tuple(row)) for n, row in enumerate(rows)]
    return Evaluation(labels, tuple(cases), options).summary()


def test_statistics_by_hand():
    """Lengths 10, 5 and 0 of 10: Dice 1, 2/3 and 0, volume errors 0, -20 and -40 voxels."""
    organ, mean = summary_of([box(10), box(5), box(0)], box(10))["results"]
    assert organ["dice"]["mean"] == pytest.approx(5 / 9)
    assert organ["dice"]["median"] == pytest.approx(2 / 3)
    assert organ["dice"]["std"] == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert organ["dice"]["interval_95"] == pytest.approx([0, 1])  # of 27 resamples, each extreme is more than 2.5%
    assert organ["dice"]["defined"] == 3
    assert organ["volume_error_percent"]["mean"] == pytest.approx(-50)
    assert mean["dice"] == organ["dice"]
    assert (organ["missed"], organ["false_positive"], organ["absent"]) == (1, 0, 0)
    assert (organ["missed_cases"], organ["false_positive_cases"]) == (["2"], [])
    assert organ["lesions"] == {"truth": 3, "found": 2, "false_positive": 0}
    assert "missed" not in mean


def test_worst_cases_come_first_and_are_few():
    organ = summary_of([box(length) for length in (9, 3, 14, 8, 0, 7, 11)], box(10))["results"][0]
    assert [case["case"] for case in organ["sensitivity"]["worst"]] == ["4", "1", "5", "3", "0"]
    assert [case["case"] for case in organ["hd100_mm"]["worst"]][:3] == ["4", "1", "2"]
    assert [case["value"] for case in organ["volume_error_percent"]["worst"]] == [-100, -70, 40, -30, -20]


def test_undefined_cases_are_left_out_and_counted():
    organ, mean = summary_of([box(10), box(5), box(0)], box(10), empty="nan")["results"]
    assert organ["precision"]["mean"] == 1
    assert organ["precision"]["defined"] == 2
    assert [case["case"] for case in organ["hd95_mm"]["worst"]] == ["1", "0"]
    assert organ["dice"]["mean"] == pytest.approx(5 / 9)
    assert organ["dice"]["defined"] == 3
    assert mean["hd95_mm"]["defined"] == 2
    nothing = summary_of([box(0)] * 3, box(0), empty="nan")["results"][0]["dice"]
    assert nothing == {"mean": None, "median": None, "std": None, "defined": 0, "interval_95": None, "worst": []}


def test_interval_leaves_undefined_cases_out_of_every_draw():
    """A case without a value changes the mean of no draw; of two cases that are the same, nothing varies."""
    precision = summary_of([box(14), box(0), box(14)], box(10), empty="nan")["results"][0]["precision"]
    assert precision["interval_95"] == pytest.approx([10 / 14, 10 / 14])
    only_one = summary_of([box(14), box(0)], box(10), empty="nan")["results"][0]["precision"]
    assert (only_one["mean"], only_one["std"], only_one["interval_95"]) == (10 / 14, None, None)


def test_interval_is_about_that_of_a_normal_mean_and_repeats():
    rng = np.random.default_rng(3)
    predictions = [np.roll(box(10), shift, 2) for shift in rng.integers(0, 6, 12)]
    iou = summary_of(predictions, box(10))["results"][0]["iou"]
    half = 1.96 * iou["std"] / np.sqrt(12)
    assert iou["interval_95"] == pytest.approx([iou["mean"] - half, iou["mean"] + half], abs=0.25 * half)
    assert summary_of(predictions, box(10)) == summary_of(predictions, box(10))


def test_interval_is_that_of_the_statistics():
    """The same draws and the same percentiles as `compare` uses."""
    from sam2_3dmed.evaluation.statistics import bootstrap_interval_of_mean

    lengths = (9, 3, 14, 8, 1, 7, 11)
    organ = summary_of([box(length) for length in lengths], box(10))["results"][0]
    errors = [10 * (length - 10) for length in lengths]
    assert organ["volume_error_percent"]["interval_95"] == pytest.approx(bootstrap_interval_of_mean(errors))


def test_says_how_it_was_scored():
    summary = summary_of([box(10)], box(10), tolerances_mm=(3,), surface="voxel", empty="nan")
    assert summary["metrics"]["nsd_3mm"]["tolerance_mm"] == 3
    assert summary["metrics"]["hd95_mm"]["surface"] == summary["surface"]["definition"] == "voxel"
    assert summary["empty_policy"] == "nan"
    assert "NaN" in summary["empty_masks"]
    assert "diagonal" in summary_of([box(10)], box(10))["empty_masks"]


def test_table():
    truth, prediction = box(10), box(5)
    truth[0, 0, 0] = 2
    text = summary_table(summary_of([prediction, truth], truth, LABELS, tolerances_mm=(3,)))
    lines = text.splitlines()
    assert lines[0].split() == ["organ", "tumour", "mean", "foreground"]
    assert lines[1].split() == ["dice", "0.833", "0.500", "0.667", f"{(1 + 2 * 20 / 61) / 2:.3f}"]
    assert [line.split() for line in lines if line.startswith("missed")] == [["missed", "0", "1", "0"]]
    assert lines[-2] == "2 cases; means over cases; surface: surfel; empty masks: penalise"
    assert lines[-1] == "worst by mean Dice: 0 (0.333), 1 (1.000)"


def test_table_of_what_is_undefined():
    text = summary_table(summary_of([box(0)], box(0), empty="nan"))
    assert "dice                  -      -" in text
    assert text.endswith("worst by mean Dice: none is defined")
