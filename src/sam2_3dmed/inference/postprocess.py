"""What may be done to a mask after the network: small pieces out, holes filled; class by class, in place."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.components import find_components
from sam2_3dmed.volume.volume import Volume

Classes = bool | tuple[str, ...]
"""All, none, or the classes of these names."""


@dataclass(frozen=True)
class PostProcessing:
    """What is done to each class of a mask.

    largest_component: only its largest piece stays; min_volume_ml: pieces below this go, for all classes or by name;
    fill_holes: background that the class encloses in 3D becomes the class (another class in there stays).
    Pieces connect by faces, edges and corners, holes by faces only.

    Raises: ConfigError if a volume is negative.
    """

    largest_component: Classes = False
    min_volume_ml: float | Mapping[str, float] = 0.0
    fill_holes: Classes = False

    def __post_init__(self) -> None:
        volumes = self.min_volume_ml.values() if isinstance(self.min_volume_ml, Mapping) else [self.min_volume_ml]
        if not all(0 <= volume < float("inf") for volume in volumes):
            raise ConfigError(f"min_volume_ml: a volume must not be negative: {self.min_volume_ml}")

    def require_known(self, names: Collection[str]) -> None:
        """Raise ConfigError if an option names a class that is not among `names`."""
        for option in ("largest_component", "min_volume_ml", "fill_holes"):
            given = getattr(self, option)
            for name in given if isinstance(given, tuple | Mapping) else ():
                if name not in names:
                    raise ConfigError(f"{option}: no class {name!r}; there are {', '.join(names)}")

    def apply(self, mask: Volume, labels: Mapping[int, str]) -> None:
        """Change a mask in place. labels: the name of each value.

        First pieces go, of all classes, then holes are filled, by ascending value: so what a piece of another class
        leaves in a hole is filled, too. For either step a class costs two passes over its bounding box, slice by slice;
        besides the mask, memory holds a few slices.
        """
        planes = mask.array.transpose(np.argsort([-abs(stride) for stride in mask.array.strides], kind="stable"))
        voxel_ml = float(np.prod(mask.spacing_mm)) / 1000
        for value, box in _boxes(planes, [v for v in labels if self._removes(labels[v])]):
            smallest = self._min_volume_ml(labels[value]) / voxel_ml
            _remove_pieces(planes[box], value, smallest, _applies(self.largest_component, labels[value]))
        for value, box in _boxes(planes, [v for v in labels if _applies(self.fill_holes, labels[v])]):
            _fill_holes(planes[box], value)

    def _removes(self, name: str) -> bool:
        return _applies(self.largest_component, name) or self._min_volume_ml(name) > 0

    def _min_volume_ml(self, name: str) -> float:
        return self.min_volume_ml.get(name, 0.0) if isinstance(self.min_volume_ml, Mapping) else self.min_volume_ml


def _applies(option: Classes, name: str) -> bool:
    return option if isinstance(option, bool) else name in option


def _boxes(planes: NDArray[np.integer], values: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The values that occur, ascending, each with the box that holds all its voxels."""
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(planes) if values else []
    for value in sorted(values):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            yield value, box


def _remove_pieces(planes: NDArray[np.integer], value: int, smallest: float, only_largest: bool) -> None:
    """Set to 0 the pieces of fewer than `smallest` voxels, and all but the largest if so wished."""
    pieces = find_components(lambda index: planes[index] == value, len(planes), diagonal=True)
    goes = pieces.sizes < smallest * (1 - 1e-9)  # a piece of just this volume stays
    if only_largest:
        goes |= np.arange(len(pieces.sizes)) != pieces.sizes.argmax()
    if goes.any():
        for plane, gone in zip(planes, pieces.select(goes), strict=True):
            plane[gone] = 0


def _fill_holes(planes: NDArray[np.integer], value: int) -> None:
    """Set to `value` the background that the value encloses."""
    outside = find_components(lambda index: planes[index] != value, len(planes), diagonal=False)
    if not outside.at_border.all():
        for plane, inside in zip(planes, outside.select(~outside.at_border), strict=True):
            plane[inside & (plane == 0)] = value
