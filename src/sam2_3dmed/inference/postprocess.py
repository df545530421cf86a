"""Post-processing of a mask: small components are removed and holes are filled, class by class, in place."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.components import find_components
from sam2_3dmed.volume.volume import Volume


def require_known_classes(config: InferenceConfig, names: Collection[str]) -> None:
    """Raise ConfigError if the post-processing names a class that is not among `names`."""
    for option in ("largest_component", "min_volume_ml", "fill_holes"):
        given = getattr(config, option)
        for name in given if isinstance(given, tuple | dict) else ():
            if name not in names:
                raise ConfigError(f"{option}: no class {name!r}; there are {', '.join(names)}")


def postprocess(mask: Volume, labels: Mapping[int, str], config: InferenceConfig) -> None:
    """Change a mask in place, as `largest_component`, `min_volume_ml` and `fill_holes` of the config ask.

    Components connect by faces, edges and corners, holes by faces only. Components are removed first, in all classes.
    Then holes are filled, by ascending value, so the hole that a removed component leaves in another class is filled,
    too. A hole that holds another class keeps that class. Either step takes two passes over the bounding box of a
    class, slice by slice; memory holds a few slices besides the mask.

    Args:
        labels: the name of each value.
    """
    planes = mask.array.transpose(np.argsort([-abs(stride) for stride in mask.array.strides], kind="stable"))
    voxel_ml = float(np.prod(mask.spacing_mm)) / 1000
    volumes = config.min_volume_ml
    smallest = {v: volumes.get(name, 0.0) if isinstance(volumes, dict) else volumes for v, name in labels.items()}
    largest = {value for value, name in labels.items() if _applies(config.largest_component, name)}
    for value, box in _boxes(planes, [value for value in labels if value in largest or smallest[value] > 0]):
        _remove_components(planes[box], value, smallest[value] / voxel_ml, value in largest)
    for value, box in _boxes(planes, [value for value in labels if _applies(config.fill_holes, labels[value])]):
        _fill_holes(planes[box], value)


def _applies(option: bool | tuple[str, ...], name: str) -> bool:
    return option if isinstance(option, bool) else name in option


def _boxes(planes: NDArray[np.integer], values: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The values that occur, ascending, each with its bounding box."""
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(planes) if values else []
    for value in sorted(values):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            yield value, box


def _remove_components(planes: NDArray[np.integer], value: int, smallest: float, only_largest: bool) -> None:
    """Set to 0 the components of fewer than `smallest` voxels; with `only_largest`, all but the largest, too."""
    components = find_components(lambda index: planes[index] == value, len(planes), diagonal=True)
    removed = components.sizes < smallest * (1 - 1e-9)  # a component of exactly this volume stays
    if only_largest:
        removed |= np.arange(len(removed)) != components.sizes.argmax()
    if removed.any():
        for plane, where in zip(planes, components.select(removed), strict=True):
            plane[where] = 0


def _fill_holes(planes: NDArray[np.integer], value: int) -> None:
    """Set to `value` the background that the value encloses."""
    outside = find_components(lambda index: planes[index] != value, len(planes), diagonal=False)
    if not outside.at_border.all():
        for plane, inside in zip(planes, outside.select(~outside.at_border), strict=True):
            plane[inside & (plane == 0)] = value
