"""What a request comes to before data is read."""

from pathlib import Path

import pytest

from sam2_3dmed.baselines.recipe import patch_recipe
from sam2_3dmed.config import RunConfig, paper, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.train_request import TrainRequest


def test_the_recipe_is_the_systems_own_unless_told() -> None:
    assert TrainRequest(Path("data")).recipe == RunConfig()
    assert TrainRequest(Path("data"), system="nnformer").recipe == patch_recipe("nnformer")
    told = patch_recipe("unet", ["training.epochs=2"])
    assert TrainRequest(Path("data"), system="unet", config=told).recipe == told


def test_what_cannot_be_is_said_at_once() -> None:
    TrainRequest(Path("data")).check()
    TrainRequest(Path("data"), system="unet", weights="none").check()
    with pytest.raises(ConfigError, match="adapts a pre-trained encoder"):
        TrainRequest(Path("data"), config=with_settings(paper(), ["model.adapt=lora"]), weights="none").check()
    with pytest.raises(ConfigError, match=r"^this recipe is not for nnformer; `system_recipe` makes one$"):
        TrainRequest(Path("data"), config=paper(), system="nnformer").check()
