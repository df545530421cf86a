"""Every system's recipe by its name."""

import pytest

from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig
from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.baselines.recipes import system_recipe
from sam2_3dmed.baselines.systems import PATCH_SYSTEMS, SYSTEMS
from sam2_3dmed.errors import ConfigError


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_has_one_with_a_budget_a_seed_and_a_split(name):
    config = system_recipe(name, ["training.minutes=5", "training.seed=3", "split.seed=2", "training.epochs=7"])
    assert isinstance(config, PatchConfig if name in PATCH_SYSTEMS else NnunetConfig)
    assert config.system == name
    assert (config.training.minutes, config.training.epochs, config.training.seed, config.split.seed) == (5, 7, 3, 2)


def test_no_such_system():
    with pytest.raises(ConfigError, match=r"^no system 'nnnet'; did you mean 'nnunet'\?$"):
        system_recipe("nnnet")
