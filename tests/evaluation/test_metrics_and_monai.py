"""The definition `voxel` gives MONAI's numbers. MONAI computes in float32 and takes seconds to import."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.volume.label import read_label

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI warns of its own call
]


@pytest.fixture(scope="module")
def assert_equal_to_monai():
    import torch

    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")

    def check(prediction, truth, spacing_mm, tolerances_mm=(1, 2.5)):
        pair = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, truth)]
        options = {"include_background": True, "spacing": tuple(map(float, spacing_mm))}
        expected = {
            "dice": metrics.compute_dice(*pair, include_background=True),
            "iou": metrics.compute_iou(*pair, include_background=True),
            "hd95_mm": metrics.compute_hausdorff_distance(*pair, percentile=95, **options),
            "hd100_mm": metrics.compute_hausdorff_distance(*pair, **options),
            "assd_mm": metrics.compute_average_surface_distance(*pair, symmetric=True, **options),
        }
        for tolerance_mm in tolerances_mm:
            nsd = metrics.compute_surface_dice(*pair, [tolerance_mm], **options)
            expected[f"nsd_{tolerance_mm:g}mm"] = nsd
        row, _ = case_metrics(prediction, truth, {1: "a"}, spacing_mm, Scoring(tolerances_mm, "voxel"))
        found = row.scores
        for name, value in expected.items():
            # Where a percentile falls between two voxels it computes in float32 as well, whatever their distances.
            rounding = 1e-4 if name == "hd95_mm" else 1e-6
            assert found[name] == pytest.approx(float(value), rel=2e-6, abs=rounding), name

    return check


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 0.8, 5), (3, 1.3, 0.7)])
@pytest.mark.parametrize("density", [0.02, 0.5, 0.95])
def test_random_masks(assert_equal_to_monai, spacing_mm, density):
    rng = np.random.default_rng(int(density * 100))
    for _ in range(8):
        shape = rng.integers(1, 12, size=3)
        masks = rng.random((2, *shape)) < density
        masks[:, 0, 0, 0] = True
        assert_equal_to_monai(*masks, spacing_mm)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 0.8, 5)])
def test_border_and_single_voxels(assert_equal_to_monai, spacing_mm):
    full, part, voxel = np.ones((6, 7, 8), bool), np.zeros((6, 7, 8), bool), np.zeros((6, 7, 8), bool)
    part[:3, 2:, 4:] = voxel[0, 0, 7] = True
    for pair in [(part, full), (part[::-1], part), (voxel, part), (full, voxel), (voxel, voxel)]:
        assert_equal_to_monai(*pair, spacing_mm)


def test_spheres(assert_equal_to_monai, sphere):
    spacing_mm = (5.0, 0.8, 0.8)
    assert_equal_to_monai(sphere(30), sphere(35), spacing_mm)
    assert_equal_to_monai(sphere(30, (0, 8, 0)), sphere(30), spacing_mm)


@pytest.mark.parametrize("case", ["040", "042"])
def test_pancreas_predictions(shared_data, assert_equal_to_monai, case):
    folder = shared_data / "metric_pairs" / "pancreas" / case
    label = read_label(folder / "ref.nii.gz")
    assert_equal_to_monai(read_label(folder / "pred_CE.nii.gz").array > 0, label.array > 0, label.spacing_mm)


def test_hippocampus_variants(shared_data, assert_equal_to_monai):
    for path in sorted((shared_data / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[:3]:
        label = read_label(path)
        truth = label.array == 1
        for prediction in (np.roll(truth, (2, -1, 1), (0, 1, 2)), binary_erosion(truth), label.array == 2):
            for spacing_mm in (label.spacing_mm, (0.8, 0.8, 5)):
                assert_equal_to_monai(prediction, truth, spacing_mm)
