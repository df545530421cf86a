"""Our side of prediction with nnU-Net: files there and back, options, the life of its process."""

import gc
import os
import time

import numpy as np
import pytest
import torch

from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
from sam2_3dmed.baselines.recipe import NnunetConfig, NnunetSpec
from sam2_3dmed.config import changed
from sam2_3dmed.errors import ConfigError, ProcessError, VolumeError
from sam2_3dmed.volume.volume import Volume, same_grid

SPEC = NnunetSpec(
    configuration="3d_fullres",
    plans={"configurations": {"3d_fullres": {"patch_size": [8, 8, 8]}}},
    dataset={"labels": {"background": 0, "class 1": 1, "class 2": 2}},
)


@pytest.fixture
def make(standin, balls, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.touch()

    def make_it(**options):
        config = changed(NnunetConfig().inference, options, "inference")
        return NnunetPredictor(weights, SPEC, balls.plan, device=torch.device("cpu"), config=config)

    return make_it


@pytest.fixture
def volume():
    array = np.zeros((6, 8, 10), dtype=np.int16)
    array[1:4, 2:7, 3:9] = 100
    array[5, 7, 9] = 100
    return Volume(array, np.diag([-2.0, 1.5, 3.0, 1.0]))


def test_a_mask_of_label_values_on_the_volumes_grid(make, volume):
    mask = make()(volume)
    assert same_grid(mask, volume)
    np.testing.assert_array_equal(mask.array, np.where(volume.array > 0, 3, 0))


def test_probabilities_lie_where_the_mask_does(make, volume, tmp_path):
    mask = make()(volume, probabilities=tmp_path / "p" / "case")
    dark, bright = (Volume.read(tmp_path / "p" / f"case_{name}.nii.gz") for name in ("dark", "bright"))
    assert same_grid(dark, volume)
    np.testing.assert_allclose(dark.array, np.where(mask.array == 3, 0.9, 0.0), atol=1 / 255)
    np.testing.assert_allclose(bright.array, 0, atol=1 / 255)


def test_its_cost_is_that_of_its_process(make, volume):
    assert make().cost_of(volume) == (2.5, 700.0, 70.0)


def test_post_processing_is_ours(make, volume):
    mask = make(largest_component=True)(volume)
    assert mask.array[5, 7, 9] == 0
    assert mask.array[2, 3, 4] == 3


def test_one_process_for_all_volumes_that_ends_with_the_predictor(make, volume):
    predictor = make()
    predictor(volume)
    first = predictor._started[0]._process.pid
    predictor(volume)
    assert predictor._started[0]._process.pid == first
    del predictor
    gc.collect()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(first, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_a_process_that_dies_costs_one_volume(make, volume):
    predictor = make()
    predictor(volume)
    predictor._started[0]._process.kill()
    with pytest.raises(ProcessError, match=r"^nnU-Net has ended: without output \(status -9\)$"):
        predictor(volume)
    assert predictor(volume).array.max() == 3, "the next volume has a new process"


def test_what_it_cannot_do(make, volume, tmp_path):
    with pytest.raises(ConfigError, match="no boundary maps"):
        make().with_auxiliary(volume)
    with pytest.raises(ConfigError, match="inference: configuration: mode: not for nnU-Net"):
        make(mode="stream")
    with pytest.raises(ConfigError, match="no class 'liver'"):
        make(largest_component=("liver",))
    with pytest.raises(VolumeError, match="takes 1 channels, and this has 2"):
        make()(Volume(np.zeros((4, 4, 4, 2)), np.eye(4)))
