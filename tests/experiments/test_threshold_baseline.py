import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sam2_3dmed.errors import DataError
from sam2_3dmed.experiments.threshold_baseline import Interval, best_threshold_dice
from sam2_3dmed.volume.volume import Volume

GRID = np.diag([2.0, 2.0, 4.0, 1.0])


def pair(image: np.ndarray, label: np.ndarray) -> tuple[Volume, Volume]:
    return Volume(image, GRID), Volume(label.astype(np.uint8), GRID)


def two_blocks(shift: int = 0) -> tuple[Volume, Volume]:
    label = np.zeros((8, 8, 4), dtype=np.uint8)
    label[1:3], label[5:7] = 1, 2
    return pair(np.array([0, 50, 90], dtype=np.int16)[label] + np.int16(shift), label)


def test_separate_intensities_are_found_without_error() -> None:
    score = best_threshold_dice([two_blocks()], [two_blocks()], classes=(1, 2))
    assert score.dice == {1: 1.0, 2: 1.0}
    assert score.mean == 1.0
    assert score.intervals[1] == Interval(50, 50, 0)


def test_the_score_is_that_of_the_test_cases() -> None:
    # The interval 50..50 chosen in training holds nothing of a test case that is 5 HU brighter.
    score = best_threshold_dice([two_blocks()], [two_blocks(shift=5), two_blocks()], classes=(1,), sigmas=(0,))
    assert score.dice[1] == 0.5


def test_shared_intensities_cost_what_they_must() -> None:
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[0] = 1
    image = np.zeros((4, 4, 4), dtype=np.int16)
    image[:2] = 100  # half of what is bright is the target: Dice 2 * 16 / (32 + 16)
    score = best_threshold_dice([pair(image, label)], [pair(image, label)], classes=(1,), sigmas=(0,))
    assert score.mean == pytest.approx(2 / 3)


def test_the_interval_is_the_best_of_all_pairs_of_bounds() -> None:
    rng = np.random.default_rng(0)
    label = rng.random((10, 10, 6)) < 0.3
    image = np.rint(rng.normal(label * 12.0, 8)).astype(np.int16)
    chosen = best_threshold_dice(
        [pair(image, label)], [pair(image, label)], classes=(1,), sigmas=(0,), num_percentiles=101
    )
    levels = np.arange(image.min(), image.max() + 1)
    every = [
        2 * (inside & label).sum() / (inside.sum() + label.sum())
        for low in levels
        for high in levels[levels >= low]
        if (inside := (image >= low) & (image <= high)).any()
    ]
    assert chosen.mean == pytest.approx(max(every), abs=0.01)
    assert chosen.mean <= max(every) + 1e-12


def test_smoothing_is_used_where_it_helps_and_is_the_same_in_mm() -> None:
    rng = np.random.default_rng(1)
    label = np.zeros((24, 24, 12), dtype=np.uint8)
    label[6:18, 6:18, 3:9] = 1
    noisy = (100 * label + rng.normal(0, 80, label.shape)).astype(np.float32)
    score = best_threshold_dice([pair(noisy, label)], [pair(noisy, label)], classes=(1,))
    assert score.intervals[1].sigma > 0
    image = Volume(noisy, GRID)
    expected = gaussian_filter(noisy, (1, 1, 0.5)) >= 40
    np.testing.assert_array_equal(Interval(40, np.inf, 1).mask(image), expected)


def test_a_class_absent_from_a_test_case_costs_only_if_it_is_predicted() -> None:
    train = [two_blocks()]
    empty = np.zeros((8, 8, 4), dtype=np.int16)
    nothing, false_alarm = pair(empty, empty), pair(empty + np.int16(50), empty)
    assert best_threshold_dice(train, [nothing], classes=(1,), sigmas=(0,)).mean == 1.0
    assert best_threshold_dice(train, [false_alarm], classes=(1,), sigmas=(0,)).mean == 0.0


def test_what_cannot_be_scored_gets_one_line() -> None:
    with pytest.raises(DataError, match="at least one training case and one test case"):
        best_threshold_dice([], [two_blocks()], classes=(1,))
    with pytest.raises(DataError, match="no training case holds a voxel of label 7"):
        best_threshold_dice([two_blocks()], [two_blocks()], classes=(7,))
