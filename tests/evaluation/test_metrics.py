import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.masks import bounding_box
from sam2_3dmed.evaluation.metrics import LesionCounts, Scoring, case_metrics, count_lesions, dice, nsd_column
from sam2_3dmed.evaluation.surface import surface_distances
from sam2_3dmed.volume.label import read_label

EMPTY = np.zeros((3, 4, 12), dtype=bool)
VOXEL = EMPTY.copy()
VOXEL[1, 1, 1] = True
SPHERES_MM = (5.0, 0.8, 0.8)
TOLERANCES_MM = (0.5, 1.0, 2.0, 3.3)
TOUCHING = np.zeros((6, 7, 8), dtype=bool)
TOUCHING[:3, 2:, 4:] = True


def score(prediction, truth, spacing_mm=(1, 1, 1), **scoring):
    """The one class of two bool masks."""
    return case_metrics(prediction, truth, {1: "organ"}, spacing_mm, Scoring(**scoring))[0]


def iou(prediction, truth):
    return score(prediction, truth).scores["iou"]


def hd95(prediction, truth, spacing_mm):
    return score(prediction, truth, spacing_mm).scores["hd95_mm"]


def nsd(prediction, truth, spacing_mm, tolerance_mm):
    return score(prediction, truth, spacing_mm, tolerances_mm=(tolerance_mm,)).scores[nsd_column(tolerance_mm)]


@st.composite
def mask_pairs(draw):
    """Two masks of one shape, blobs and speckles, of which none is empty."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=3, max_size=3)))
    pair = []
    for _ in range(2):
        mask = draw(arrays(bool, shape)) if draw(st.booleans()) else np.zeros(shape, dtype=bool)
        low = [draw(st.integers(0, size - 1)) for size in shape]
        high = [draw(st.integers(start + 1, size)) for start, size in zip(low, shape, strict=True)]
        mask[tuple(map(slice, low, high))] = True
        pair.append(mask)
    return pair


def assert_equal_to_oracle(oracle, prediction, truth, spacing_mm, tolerances_mm=TOLERANCES_MM):
    expected = oracle(prediction, truth, spacing_mm)
    found = score(prediction, truth, spacing_mm, tolerances_mm=tolerances_mm)
    assert found.scores["hd95_mm"] == pytest.approx(expected.hausdorff(95), abs=1e-6)
    assert found.scores["hd100_mm"] == pytest.approx(expected.hausdorff(100), abs=1e-6)
    assert found.scores["assd_mm"] == pytest.approx(expected.assd(), abs=1e-6)
    for tolerance_mm in tolerances_mm:
        assert found.scores[nsd_column(tolerance_mm)] == pytest.approx(expected.nsd(tolerance_mm), abs=1e-6)


def test_dice_and_iou_by_hand():
    prediction, truth = EMPTY.copy(), EMPTY.copy()
    prediction[0, 0, :4] = True
    truth[0, 0, 1:7] = True
    assert dice(prediction, truth) == 2 * 3 / (4 + 6)
    assert iou(prediction, truth) == 3 / 7


@settings(max_examples=40, deadline=None)
@given(masks=mask_pairs())
def test_dice_follows_from_iou_and_both_are_symmetric(masks):
    prediction, truth = masks
    overlap = iou(prediction, truth)
    assert dice(prediction, truth) == pytest.approx(2 * overlap / (1 + overlap))
    assert dice(truth, prediction) == dice(prediction, truth)
    assert iou(truth, prediction) == overlap


def test_identical_masks_are_perfect():
    assert hd95(TOUCHING, TOUCHING, (0.8, 0.8, 5)) == 0
    assert nsd(TOUCHING, TOUCHING, (0.8, 0.8, 5), 0) == 1
    assert dice(TOUCHING, TOUCHING) == iou(TOUCHING, TOUCHING) == 1


@pytest.mark.parametrize(("axis", "voxels", "expected_mm"), [(1, 5, 4.0), (2, 5, 4.0), (0, 1, 5.0)])
def test_shifted_box_is_exact(axis, voxels, expected_mm):
    box = np.zeros((20, 80, 80), dtype=bool)
    box[5:14, 20:60, 20:60] = True
    assert hd95(np.roll(box, voxels, axis), box, SPHERES_MM) == expected_mm


@pytest.mark.parametrize(
    ("prediction", "truth", "expected_mm", "expected_nsd"),
    [
        ((30,), (35,), 5.60, 0.211),
        ((30, (0, 8, 0)), (30,), 7.20, 0.487),
        ((30, (0, 0, 8)), (30,), 7.20, 0.487),
    ],
)
def test_spheres(sphere, prediction, truth, expected_mm, expected_nsd):
    prediction, truth = sphere(*prediction), sphere(*truth)
    assert hd95(prediction, truth, SPHERES_MM) == pytest.approx(expected_mm, abs=1e-6)
    assert nsd(prediction, truth, SPHERES_MM, 3) == pytest.approx(expected_nsd, abs=5e-4)


def test_percentile_goes_by_area_and_not_by_count():
    """A flat far false positive of 2 x 1 voxels is under 5% of the elements, but not of the area."""
    truth = np.zeros((80, 6, 40), dtype=bool)
    truth[2:10, 2:4, 2:38] = True
    prediction = truth.copy()
    prediction[70, 1:5, 2] = True
    spacing_mm = (0.5, 20, 0.5)
    found = surface_distances(prediction, truth, spacing_mm)
    assert np.percentile(found.prediction_to_truth_mm, 95) == 0
    assert hd95(prediction, truth, spacing_mm) > 25


@settings(max_examples=80, deadline=None)
@given(masks=mask_pairs(), spacing_mm=st.tuples(*[st.floats(0.3, 6)] * 3), tolerance_mm=st.floats(0.1, 8))
def test_random_masks_equal_the_oracle(oracle, masks, spacing_mm, tolerance_mm):
    assert_equal_to_oracle(oracle, *masks, spacing_mm, (tolerance_mm,))


@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 5), (1, 1, 1)])
def test_masks_at_the_border_equal_the_oracle(oracle, spacing_mm):
    full = np.ones_like(TOUCHING)
    voxel = np.zeros_like(TOUCHING)
    voxel[0, 0, 7] = True
    for prediction, truth in [(TOUCHING, full), (TOUCHING[::-1], TOUCHING), (voxel, TOUCHING), (full, voxel)]:
        assert_equal_to_oracle(oracle, prediction, truth, spacing_mm)


@settings(max_examples=40, deadline=None)
@given(masks=mask_pairs(), factor=st.sampled_from([0.25, 2, 8]))
def test_distances_scale_with_spacing(masks, factor):
    spacing_mm = (0.8, 1.1, 5)
    scaled_mm = tuple(size * factor for size in spacing_mm)
    assert hd95(*masks, scaled_mm) == factor * hd95(*masks, spacing_mm)
    assert nsd(*masks, scaled_mm, 2 * factor) == pytest.approx(nsd(*masks, spacing_mm, 2))


@settings(max_examples=40, deadline=None)
@given(masks=mask_pairs(), axes=st.permutations(range(3)))
def test_turned_masks_score_the_same(masks, axes):
    spacing_mm = (0.7, 1.3, 2.9)
    turned = [mask.transpose(axes)[::-1, :, ::-1] for mask in masks]
    turned_mm = tuple(spacing_mm[axis] for axis in axes)
    assert hd95(*turned, turned_mm) == pytest.approx(hd95(*masks, spacing_mm))
    assert nsd(*turned, turned_mm, 1.77) == pytest.approx(nsd(*masks, spacing_mm, 1.77))


@pytest.mark.parametrize(
    ("case", "network"),
    [
        *((case, "CE") for case in ("021", "024", "040", "041", "042")),
        pytest.param("040", "WCE", marks=pytest.mark.slow),
    ],
)
def test_pancreas_predictions_equal_the_oracle(shared_data, oracle, case, network):
    folder = shared_data / "metric_pairs" / "pancreas" / case
    label = read_label(folder / "ref.nii.gz")
    truth, prediction = label.array > 0, read_label(folder / f"pred_{network}.nii.gz").array > 0
    # Most of these volumes is air, and the oracle takes its time over all of it.
    box = tuple(slice(max(0, side.start - 5), side.stop + 5) for side in bounding_box(truth, prediction))
    assert_equal_to_oracle(oracle, prediction[box], truth[box], label.spacing_mm, (1.0, 5.0))
    assert hd95(prediction, truth, label.spacing_mm) == hd95(prediction[box], truth[box], label.spacing_mm)


def test_hippocampus_variants_equal_the_oracle(shared_data, oracle):
    for path in sorted((shared_data / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[:3]:
        label = read_label(path)
        truth = label.array == 1
        variants = {
            "shifted": np.roll(truth, (2, -1, 1), (0, 1, 2)),
            "eroded": binary_erosion(truth),
            "swapped": label.array == 2,
        }
        for prediction in variants.values():
            for spacing_mm in (label.spacing_mm, (0.8, 0.8, 5)):
                assert_equal_to_oracle(oracle, prediction, truth, spacing_mm)


def test_case_metrics_by_hand():
    truth = np.zeros((3, 4, 12), dtype=np.uint8)
    truth[0, 0, :4] = 1
    truth[2, 2, 2] = 5
    prediction = np.zeros((3, 4, 12), dtype=np.uint16)
    prediction[0, 0, 2:6] = 1
    prediction[2, 3, 2] = 7  # not a class: background
    rows = case_metrics(prediction, truth, {1: "organ", 5: "tumour", 300: "cyst"}, (1, 1, 2), Scoring((2, 1, 2)))
    assert [(row.kind, row.name, row.label) for row in rows] == [
        ("class", "organ", 1),
        ("class", "tumour", 5),
        ("class", "cyst", 300),
        ("mean", "mean", None),
        ("union", "foreground", None),
    ]
    organ, tumour, cyst, mean, union = rows
    assert (organ.scores["dice"], organ.scores["iou"], organ.presence) == (0.5, 2 / 6, "both")
    assert (organ.prediction_mm3, organ.truth_mm3) == (8, 8)
    assert [column for column in organ.scores if "nsd" in column] == ["nsd_2mm", "nsd_1mm"]
    assert organ.scores["hd95_mm"] == hd95(prediction == 1, truth == 1, (1, 1, 2))
    assert organ.scores["nsd_1mm"] == nsd(prediction == 1, truth == 1, (1, 1, 2), 1)
    diagonal_mm = math.sqrt(3**2 + 4**2 + 24**2)
    assert [tumour.scores[name] for name in ("dice", "iou", "nsd_2mm", "nsd_1mm")] == [0] * 4
    assert (tumour.presence, cyst.presence) == ("missed", "absent")
    assert tumour.scores["hd95_mm"] == pytest.approx(diagonal_mm)
    assert [cyst.scores[name] for name in ("dice", "iou", "nsd_2mm", "nsd_1mm", "hd95_mm")] == [1, 1, 1, 1, 0]
    assert (mean.scores["dice"], mean.scores["iou"]) == (0.5, pytest.approx((1 / 3 + 0 + 1) / 3))
    assert mean.scores["hd95_mm"] == pytest.approx((organ.scores["hd95_mm"] + diagonal_mm) / 3)
    assert mean.scores["nsd_2mm"] == pytest.approx((organ.scores["nsd_2mm"] + 1) / 3)
    assert (mean.presence, mean.truth_mm3, mean.prediction_mm3) == (None, None, None)
    assert (union.scores["dice"], union.scores["iou"]) == (2 * 2 / (4 + 5), 2 / 7)
    assert (union.prediction_mm3, union.truth_mm3) == (8, 10)


def test_one_class_has_no_union_and_may_be_a_false_positive():
    truth, prediction = np.zeros((2, 3, 4, 12), dtype=np.uint8)
    prediction[1, 1, 1] = 1
    only, mean = case_metrics(prediction, truth, {1: "tumour"}, (1, 1, 1), Scoring((1,)))
    assert (only.presence, only.scores["hd95_mm"], only.scores["dice"]) == ("false_positive", 13, 0)
    assert (mean.kind, mean.scores["hd95_mm"]) == ("mean", 13)


@pytest.mark.parametrize("offset", [0, 40])
def test_case_metrics_do_not_depend_on_empty_surroundings(offset):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 3, size=(2, 6, 7, 8)).astype(np.uint8)
    shape = (50, 50, 50)
    prediction, truth = np.zeros((2, *shape), dtype=np.uint8)
    place = tuple(slice(offset, offset + size) for size in small.shape[1:])
    prediction[place], truth[place] = small
    labels = {1: "a", 2: "b"}
    found = case_metrics(prediction, truth, labels, (0.8, 0.8, 5), Scoring((1,)))
    assert found == case_metrics(*small, labels, (0.8, 0.8, 5), Scoring((1,)))


MAP = np.zeros((2, 2, 2), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MAP.astype(float), MAP, {1: "a"}, (1, 1, 1)), "prediction must be a 3D map of integers"),
        ((MAP, MAP[0], {1: "a"}, (1, 1, 1)), "truth must be a 3D map of integers, not 2D"),
        ((MAP, MAP[:1], {1: "a"}, (1, 1, 1)), "shape"),
        ((MAP, MAP, {}, (1, 1, 1)), "one or more classes"),
        ((MAP, MAP, {0: "background", 1: "a"}, (1, 1, 1)), "value 1 or more"),
        ((MAP, MAP, {1: "a"}, (1, 1)), "three positive numbers"),
    ],
)
def test_case_metrics_refuses(arguments, message):
    with pytest.raises(VolumeError, match=message):
        case_metrics(*arguments)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ({"tolerances_mm": ()}, "tolerances"),
        ({"tolerances_mm": (-1,)}, "tolerances"),
        ({"tolerances_mm": (math.nan,)}, "tolerances"),
        ({"surface": "area"}, "no surface definition 'area'"),
        ({"empty": "skip"}, "no policy 'skip' for empty masks; there are penalise and nan"),
    ],
)
def test_scoring_refuses(scoring, message):
    with pytest.raises(VolumeError, match=message):
        Scoring(**scoring)


def test_masks_must_be_boolean():
    with pytest.raises(VolumeError, match="boolean"):
        dice(MAP, MAP)


def test_counts_and_volumes_by_hand():
    """10 voxels of truth, 6 predicted, 4 shared; a voxel is 0.5 ml."""
    truth, prediction = np.zeros((2, 3, 4, 12), dtype=bool)
    truth[0, 0, :10] = True
    prediction[0, 0, 6:12] = True
    found = score(prediction, truth, (5, 10, 10))
    assert (found.scores["sensitivity"], found.scores["precision"]) == (4 / 10, 4 / 6)
    assert (found.scores["volume_error_ml"], found.scores["volume_error_percent"]) == (-2, -40)
    assert (found.scores["lesion_f1"], found.lesions.truth) == (1, 1)


def test_columns_have_the_metrics_in_order():
    assert list(score(VOXEL, VOXEL, tolerances_mm=(3, 0.5)).scores) == [
        *("dice", "iou", "hd95_mm", "hd100_mm", "assd_mm", "nsd_3mm", "nsd_0.5mm"),
        *("volume_error_ml", "volume_error_percent", "sensitivity", "precision", "lesion_f1"),
    ]


def test_columns_say_surface_and_tolerance_where_they_matter():
    columns = {name: metric.describe("voxel") for name, metric in Scoring((2.0, 0.5)).columns().items()}
    assert columns["nsd_0.5mm"]["tolerance_mm"] == 0.5
    on_surface = {name for name, described in columns.items() if described.get("surface") == "voxel"}
    assert on_surface == {"hd95_mm", "hd100_mm", "assd_mm", "nsd_2mm", "nsd_0.5mm"}
    assert {name for name, described in columns.items() if described["unit"] == "mm"} == {
        name for name in columns if name.endswith("_mm")
    }
    assert {name for name, described in columns.items() if described["better"] == "zero"} == {
        "volume_error_ml",
        "volume_error_percent",
    }
    assert all(described["definition"] for described in columns.values())


def mask_of(*places):
    mask = np.zeros((6, 6, 6), dtype=bool)
    for place in places:
        mask[place] = True
    return mask


def test_found_missed_and_false_positive():
    truth = mask_of((0, 0, 0), (2, 2, 2), (5, 5, 5))
    prediction = mask_of((0, 0, 0), (0, 0, 1), (5, 0, 0))
    assert count_lesions(prediction, truth) == LesionCounts(truth=3, found=1, false_positive=1)
    assert count_lesions(prediction, truth).f1() == 2 * 1 / (2 * 1 + 1 + 2)


@pytest.mark.parametrize("neighbour", [(2, 2, 3), (2, 3, 3), (3, 3, 3)], ids=["face", "edge", "corner"])
def test_voxels_that_touch_belong_together(neighbour):
    assert count_lesions(mask_of(), mask_of((2, 2, 2), neighbour)).truth == 1


def test_voxels_that_do_not_touch_are_apart():
    assert count_lesions(mask_of(), mask_of((2, 2, 2), (2, 2, 4))).truth == 2


def test_one_piece_may_find_several_and_several_may_find_one():
    several, one = mask_of((0, 0, 0), (0, 0, 2)), mask_of((0, 0, 0), (0, 0, 1), (0, 0, 2))
    assert count_lesions(one, several) == LesionCounts(truth=2, found=2, false_positive=0)
    assert count_lesions(several, one) == LesionCounts(truth=1, found=1, false_positive=0)


def test_nothing_anywhere_is_undefined():
    assert np.isnan(count_lesions(mask_of(), mask_of()).f1())
    assert count_lesions(mask_of(), mask_of((0, 0, 0))).f1() == 0
    assert count_lesions(mask_of((0, 0, 0)), mask_of()).f1() == 0


@given(masks=st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda shape: st.tuples(*[arrays(bool, shape)] * 2)))
def test_laws_of_lesions(masks):
    forth, back = count_lesions(*masks), count_lesions(*masks[::-1])
    assert 0 <= forth.found <= forth.truth
    assert back.truth - back.found == forth.false_positive
    assert forth.truth - forth.found == back.false_positive
    same = count_lesions(masks[0], masks[0])
    assert same.truth == same.found
    assert same.false_positive == 0


def test_masks_of_lesions_must_be_boolean():
    with pytest.raises(VolumeError, match="boolean"):
        count_lesions(mask_of().astype(int), mask_of())
