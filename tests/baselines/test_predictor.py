"""From a volume to its mask, with a network whose answer is known: it thresholds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.baselines.predictor import PatchPredictor, _log_odds
from sam2_3dmed.baselines.recipe import Intensities, PatchSpec
from sam2_3dmed.config import changed
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume, same_grid


class Threshold(nn.Module):
    """Class 1 where the image is above 0.7, class 2 below 0.3, as logits of background, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * torch.cat([torch.zeros_like(image), image - 0.7, 0.3 - image], dim=1)


@pytest.fixture
def make_predictor(make_spec: Callable[..., PatchSpec], balls: Any) -> Callable[..., PatchPredictor]:
    def make(**options: Any) -> PatchPredictor:
        spec = make_spec("unet", "model.patch=[4, 16, 16]").model_copy(
            update={"intensities": (Intensities(mean=0.0, std=1.0),), "patch": (4, 16, 16)}
        )
        config = changed(find_system("unet").recipe().inference, {"precision": "32", **options}, "inference")
        return PatchPredictor(Threshold(), spec, balls.plan, config)

    return make


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_mask_lies_on_the_input_grid(make_predictor: Callable[..., PatchPredictor], blobs: Path) -> None:
    image = Volume.read(blobs / "imagesTr" / "blob_00.nii.gz")
    truth = read_label(blobs / "labelsTr" / "blob_00.nii.gz")
    mask = make_predictor()(image)
    assert same_grid(mask, image)
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array, truth.array)  # bright is above 0.7 of the range, dark below 0.3


@pytest.mark.parametrize("flip", [(slice(None, None, -1), slice(None), slice(None))])
def test_a_volume_stored_the_other_way_round(
    make_predictor: Callable[..., PatchPredictor], blobs: Path, flip: tuple
) -> None:
    image = Volume.read(blobs / "imagesTr" / "blob_01.nii.gz")
    affine = image.affine @ np.array([[-1, 0, 0, image.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    other = Volume(np.ascontiguousarray(image.array[flip]), affine)
    predictor = make_predictor()
    assert np.array_equal(predictor(other).array[flip], predictor(image).array)


@pytest.mark.parametrize("spacing", [(2.0, 3.0, 3.0), (4.5, 1.0, 1.2)])
def test_other_spacings_come_back_too(make_predictor: Callable[..., PatchPredictor], spacing: tuple) -> None:
    """A ball in mm, on a grid other than the patches'; the network sees it resampled."""
    shape = tuple(int(60 / s) for s in spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    centre = (np.array(shape) - 1) / 2 * spacing
    ball = np.linalg.norm(grid * spacing - centre, axis=-1) < 18
    found = make_predictor().predict_slices((0.5 + 0.5 * ball)[:, None].astype(np.float32), spacing)
    assert set(np.unique(found)) == {0, 1}
    assert dice(found == 1, ball) > 0.93


def test_what_is_written_as_probabilities_is_the_softmax(
    make_predictor: Callable[..., PatchPredictor], blobs: Path, tmp_path: Path
) -> None:
    logits = torch.randn(3, 4, 5)
    expected = torch.cat([torch.zeros(1, 4, 5), logits]).softmax(dim=0)[1:]
    torch.testing.assert_close(_log_odds(logits).sigmoid(), expected)
    image = Volume.read(blobs / "imagesTr" / "blob_00.nii.gz")
    mask = make_predictor()(image, probabilities=tmp_path / "blob")
    bright = Volume.read(tmp_path / "blob_bright.nii.gz").array
    assert bright[mask.array == 1].min() > 0.33
    assert bright[mask.array == 3].max() < 0.1
    assert (tmp_path / "blob_dark.nii.gz").is_file()


def test_flips_change_nothing_for_a_network_without_sides(
    make_predictor: Callable[..., PatchPredictor], blobs: Path
) -> None:
    image = Volume.read(blobs / "imagesTr" / "blob_02.nii.gz")
    assert np.array_equal(make_predictor(flips=True)(image).array, make_predictor()(image).array)


def test_windows_are_counted_as_monai_makes_them(make_predictor: Callable[..., PatchPredictor]) -> None:
    from monai.data.utils import dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

    for overlap in (0.0, 0.25, 0.5):
        predictor = make_predictor(overlap=overlap)
        for shape in ((7, 28, 24), (4, 16, 16), (3, 40, 17)):
            padded = [max(size, side) for size, side in zip(shape, (4, 16, 16), strict=True)]
            interval = _get_scan_interval(padded, (4, 16, 16), 3, (overlap,) * 3)
            expected = len(dense_patch_slices(padded, (4, 16, 16), interval))
            assert predictor.num_windows(shape, predictor.spec.spacing_mm) == expected


def test_options(make_predictor: Callable[..., PatchPredictor], blobs: Path) -> None:
    predictor = make_predictor(overlap=0.25, batch_size=3, largest_component=True)
    assert (predictor.config.overlap, predictor.config.batch_size) == (0.25, 3)
    with pytest.raises(ConfigError, match=r"^inference: configuration: direction: not for systems that learn from pat"):
        make_predictor(direction="forward")
    with pytest.raises(ConfigError, match="makes no boundary maps and no relative positions"):
        predictor.with_auxiliary(Volume.read(blobs / "imagesTr" / "blob_00.nii.gz"))
