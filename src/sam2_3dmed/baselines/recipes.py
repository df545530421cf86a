"""The recipe of any system but ours."""

from collections.abc import Sequence

from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig, nnunet_recipe
from sam2_3dmed.baselines.recipe import PatchConfig, patch_recipe
from sam2_3dmed.baselines.systems import PatchSystem, find_system

SystemConfig = PatchConfig | NnunetConfig


def system_recipe(name: str, settings: Sequence[str] = ()) -> SystemConfig:
    """A system's own recipe with `section.key=value` settings applied.

    Raises: ConfigError for no such system, or a setting that is not valid.
    """
    return patch_recipe(name, settings) if isinstance(find_system(name), PatchSystem) else nnunet_recipe(settings)
