"""The other systems by name, and what each is."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.errors import ConfigError, suggest

OURS = "sam2_3dmed"
"""The name of our own method among the systems."""


NNUNET = "nnunet"
"""The name of the real nnU-Net, which runs in an environment of its own."""


@dataclass(frozen=True)
class System:
    """A system that ours is compared with.

    title: for tables and reports; source: where it is described.
    """

    title: str
    source: str


@dataclass(frozen=True)
class PatchSystem(System):
    """A system whose network our own trainer trains on patches.

    recipe: whose way of training it has; background: whether its logits have a channel for it (a softmax), or each
    class has a sigmoid of its own; packages: of the extra that it needs.
    """

    recipe: str
    background: bool = True
    packages: tuple[str, ...] = ("monai",)


_MEDNEXT = "Roy et al., MedNeXt, MICCAI 2023; MONAI's implementation"
PATCH_SYSTEMS: Mapping[str, PatchSystem] = {
    "unet": PatchSystem(
        "U-Net (nnU-Net's plain form)", "Isensee et al., nnU-Net, Nature Methods 2021; MONAI's DynUNet", "nnunet"
    ),
    "mednext_s": PatchSystem("MedNeXt-S", _MEDNEXT, "mednext"),
    "mednext_b": PatchSystem("MedNeXt-B", _MEDNEXT, "mednext"),
    "mednext_m": PatchSystem("MedNeXt-M", _MEDNEXT, "mednext"),
    "mednext_l": PatchSystem("MedNeXt-L", _MEDNEXT, "mednext"),
    "nnformer": PatchSystem("nnFormer", "Zhou et al., nnFormer, IEEE TIP 2023; our own implementation", "nnunet"),
    "universal": PatchSystem(
        "Universal Model",
        "Liu et al., CLIP-Driven Universal Model, ICCV 2023; MONAI's SwinUNETR and our own head",
        "universal",
        background=False,
        packages=("monai", "einops"),
    ),
}
"""Those that our own trainer trains."""

SYSTEMS: Mapping[str, System] = {
    NNUNET: System("nnU-Net", "Isensee et al., nnU-Net, Nature Methods 2021; nnunetv2 itself"),
    **PATCH_SYSTEMS,
}
"""From the name after `train --system` to the system."""


def find_system(name: str) -> System:
    """The system of a name.

    Raises: ConfigError if there is none.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"no system {name!r}; {suggest(name, [OURS, *SYSTEMS])}")
    return SYSTEMS[name]


def require_system(name: str) -> None:
    """Raise ConfigError unless there is a system of that name, and what it needs."""
    system = find_system(name)
    if not isinstance(system, PatchSystem):
        find_python()
        return
    missing = [package for package in system.packages if find_spec(package) is None]
    if missing:
        raise ConfigError(f"{name} needs {' and '.join(missing)}: pip install 'sam2-3dmed[baselines]'")
