"""The baselines in the registry: their recipes, and the line for a missing package."""

import pytest

from sam2_3dmed.baselines import systems
from sam2_3dmed.baselines.systems import PatchSystem
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import find_system, system_names

PATCH_SYSTEMS = ["unet", *(f"mednext_{variant}" for variant in "sbml"), "nnformer", "universal"]


def test_the_systems_of_the_paper_that_learn_from_patches() -> None:
    found = {name: find_system(name) for name in system_names()}
    patch_systems = [name for name, system in found.items() if isinstance(system, PatchSystem)]
    assert sorted(patch_systems) == sorted(PATCH_SYSTEMS)
    assert all(found[name].name == name for name in PATCH_SYSTEMS)


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
