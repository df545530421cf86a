"""The baselines in the registry: their recipes, and the line for a missing package."""

import pytest

from sam2_3dmed.baselines import systems
from sam2_3dmed.baselines.systems import PATCH_SYSTEMS
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import find_system


def test_the_systems_of_the_paper_that_learn_from_patches() -> None:
    variants = [f"mednext_{variant}" for variant in "sbml"]
    assert list(PATCH_SYSTEMS) == ["unet", *variants, "nnformer", "universal"]
    assert all(find_system(name) is system for name, system in PATCH_SYSTEMS.items())


@pytest.mark.parametrize("name", ["nnunet", *PATCH_SYSTEMS])
def test_each_has_a_recipe_with_a_budget_a_seed_and_a_split(name: str) -> None:
    settings = ["training.minutes=5", "training.seed=3", "split.seed=2", "training.epochs=7"]
    config = find_system(name).recipe(settings=settings)
    assert config.system == name
    assert (config.training.minutes, config.training.epochs, config.training.seed, config.split.seed) == (5, 7, 3, 2)
    with pytest.raises(
        ConfigError, match=rf"^--recipe paper is for sam2_3dmed; {name} has its own, which --set changes$"
    ):
        find_system(name).recipe("paper")


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_system("unet").require()
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^unet needs monai: pip install 'sam2-3dmed\[baselines\]'$"):
        find_system("unet").require()
    with pytest.raises(ConfigError, match=r"^universal needs monai and einops: pip"):
        find_system("universal").require()
