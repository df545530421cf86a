"""nnU-Net's rules on cases that can be followed by hand."""

import numpy as np
import pytest

from sam2_3dmed.baselines.grid import Grid, common_spacing, resampled_shape
from sam2_3dmed.baselines.networks import Outline, halvings, intensities, outline
from sam2_3dmed.run.systems import find_system


def outlined(shape: tuple, spacing: tuple = (1.0, 1.0, 1.0), patch: tuple | None = None) -> Outline:
    return Outline(spacing, shape, "small", 1, 2, patch)


def test_the_median_spacing_but_no_slices_are_lost() -> None:
    fine = [Grid((100, 90, 80), (1.0, 1.0, s)) for s in (1.0, 2.0, 9.0)]
    assert common_spacing(fine) == (1.0, 1.0, 2.0)
    thick = [Grid((30, 512, 512), (s, 0.8, 0.8)) for s in (*[5.0] * 9, 2.0, 2.0)]
    assert common_spacing(thick) == (2.0, 0.8, 0.8)  # the tenth percentile; the median would be 5
    assert common_spacing([Grid((200, 512, 512), g.spacing_mm) for g in thick])[0] == 5.0  # slices enough


def test_a_volume_on_another_grid() -> None:
    assert resampled_shape((10, 100, 3), (5.0, 0.8, 1.0), (2.0, 1.0, 9.0)) == (25, 80, 1)


def test_a_patch_is_a_cube_in_mm_within_the_median_case() -> None:
    assert outlined((36, 50, 35)).choose_patch((1, 1, 1), 10**9) == (36, 50, 35)
    assert outlined((36, 50, 35)).choose_patch((8, 8, 8), 10**9) == (40, 56, 40)
    d, h, w = outlined((100, 500, 500), (5.0, 1.0, 1.0)).choose_patch((1, 1, 1), 200_000)
    assert d * h * w <= 200_000 < 1.15 * d * h * w
    assert h == w == pytest.approx(5 * d, abs=3)


def test_a_patch_that_is_given_is_rounded_up() -> None:
    assert outlined((9, 9, 9), patch=(17, 32, 1)).choose_patch((16, 16, 16), 1) == (32, 32, 16)


def test_one_voxel_at_the_bottom_is_too_few() -> None:
    assert outlined((7, 28, 24)).choose_patch((32, 32, 32), 10**6) == (32, 64, 32)


def test_hippocampus_is_halved_as_nnunet_does() -> None:
    strides, kernels = halvings((40, 56, 40), (1.0, 1.0, 1.0))
    assert strides == [(2, 2, 2)] * 3
    assert kernels == [(3, 3, 3)] * 4


def test_thick_slices_are_halved_later_and_seen_one_by_one_first() -> None:
    strides, kernels = halvings((40, 192, 192), (5.0, 1.0, 1.0))
    assert strides == [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert kernels[:3] == [(1, 3, 3), (1, 3, 3), (3, 3, 3)]
    assert len(kernels) == 6


def test_there_are_two_levels_at_least() -> None:
    strides, kernels = halvings((2, 6, 6), (1.0, 1.0, 1.0))
    assert strides == [(1, 2, 2), (1, 2, 2)]
    assert len(kernels) == 3


def test_intensities_are_the_foregrounds_of_a_ct_and_each_volumes_of_others() -> None:
    image = np.zeros((1, 2, 2, 2))
    image[0, 0] = [[0.2, 0.4], [0.9, 0.9]]
    foreground = np.array([[[True, True], [False, False]]])
    ct, mr = intensities(["fixed", "percentiles"], [(image, foreground), (image, foreground)])
    assert (ct.mean, ct.std) == pytest.approx((0.3, 0.1))
    assert (mr.mean, mr.std) == (None, None)


def test_the_outline_of_a_data_set() -> None:
    grids = [Grid((7, 28, 24), (3.0, 1.5, 1.5))] * 3
    config = find_system("unet").recipe(settings=["model.spacing_mm=[3, 3, 3]"])
    found = outline(config, grids, num_channels=1, num_classes=2, on_gpu=False)
    assert (found.spacing_mm, found.median_shape, found.size) == ((3.0, 3.0, 3.0), (7, 14, 12), "small")
    assert outline(find_system("unet").recipe(), grids, num_channels=1, num_classes=2, on_gpu=True).size == "full"
