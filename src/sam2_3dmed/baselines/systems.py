"""The patch-based systems by name, and what each is."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec

from sam2_3dmed.errors import ConfigError

OURS = "sam2_3dmed"
"""The name of our own method among the systems."""


@dataclass(frozen=True)
class System:
    """A system that learns from patches.

    title: for tables and reports; source: where it is described; recipe: whose way of training it has; background:
    whether its logits have a channel for it (a softmax), or each class has a sigmoid of its own; packages: of the extra
    that it needs.
    """

    title: str
    source: str
    recipe: str
    background: bool = True
    packages: tuple[str, ...] = ("monai",)


_MEDNEXT = "Roy et al., MedNeXt, MICCAI 2023; MONAI's implementation"
SYSTEMS: Mapping[str, System] = {
    "unet": System(
        "U-Net (nnU-Net's plain form)", "Isensee et al., nnU-Net, Nature Methods 2021; MONAI's DynUNet", "nnunet"
    ),
    "mednext_s": System("MedNeXt-S", _MEDNEXT, "mednext"),
    "mednext_b": System("MedNeXt-B", _MEDNEXT, "mednext"),
    "mednext_m": System("MedNeXt-M", _MEDNEXT, "mednext"),
    "mednext_l": System("MedNeXt-L", _MEDNEXT, "mednext"),
    "nnformer": System("nnFormer", "Zhou et al., nnFormer, IEEE TIP 2023; our own implementation", "nnunet"),
    "universal": System(
        "Universal Model",
        "Liu et al., CLIP-Driven Universal Model, ICCV 2023; MONAI's SwinUNETR and our own head",
        "universal",
        background=False,
        packages=("monai", "einops"),
    ),
}
"""From the name after `train --system` to the system."""


def find_system(name: str) -> System:
    """The system of a name.

    Raises: ConfigError if there is none.
    """
    if name not in SYSTEMS:
        known = [OURS, *SYSTEMS]
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(f"no system {name!r}; " + (f"did you mean {near[0]!r}?" if near else ", ".join(known)))
    return SYSTEMS[name]


def require_system(name: str) -> None:
    """Raise ConfigError unless there is a system of that name, and the packages that it needs."""
    missing = [package for package in find_system(name).packages if find_spec(package) is None]
    if missing:
        raise ConfigError(f"{name} needs {' and '.join(missing)}: pip install 'sam2-3dmed[baselines]'")
