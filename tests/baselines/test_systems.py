"""Names, and the line that a missing one or a missing package gets."""

import pytest

from sam2_3dmed.baselines import systems
from sam2_3dmed.baselines.systems import PATCH_SYSTEMS, SYSTEMS, find_system, require_system
from sam2_3dmed.errors import ConfigError


def test_the_systems_of_the_paper_that_learn_from_patches() -> None:
    variants = [f"mednext_{variant}" for variant in "sbml"]
    assert list(PATCH_SYSTEMS) == ["unet", *variants, "nnformer", "universal"]
    assert list(SYSTEMS) == ["nnunet", *PATCH_SYSTEMS]
    assert [name for name, system in PATCH_SYSTEMS.items() if not system.background] == ["universal"]


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^no system 'nnformr'; did you mean 'nnformer'\?$"):
        find_system("nnformr")
    assert find_system("nnformer") is SYSTEMS["nnformer"]


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_system("unet")
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^unet needs monai: pip install 'sam2-3dmed\[baselines\]'$"):
        require_system("unet")
    with pytest.raises(ConfigError, match=r"^universal needs monai and einops: pip"):
        require_system("universal")
