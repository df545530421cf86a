"""The protocol of every system that predicts: a volume in, its mask out, and what a network gives besides the mask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import Cancelled, ConfigError, DataError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import make_folder, write_text
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

_FARTHEST = 1e6
"""Slices that one may be predicted to lie from another."""


@dataclass(frozen=True)
class SlabPositions:
    """P_pos of one slab."""

    slices: tuple[int, ...]
    """The indices of the slices in the volume, in the order in which the network saw them."""
    relative_position: NDArray[np.float32]
    """(D, D); entry [i, j] is the predicted index of slice j minus that of slice i."""


@dataclass(frozen=True)
class Auxiliary:
    """The auxiliary outputs of one volume."""

    boundary: Volume | None
    """On the grid of the volume, uint8: 255 times the largest boundary probability of a class; None without BD."""
    positions: tuple[SlabPositions, ...]
    """One for each slab; none without SRPP."""

    def write(self, folder: Path, name: str) -> None:
        """Write NAME_positions.json and, with BD, NAME_boundary.nii.gz. The folder is made."""
        slabs = [
            {"slices": list(slab.slices), "relative_position": slab.relative_position.astype(float).round(4).tolist()}
            for slab in self.positions
        ]
        make_folder(folder)
        if self.boundary is not None:
            self.boundary.write(boundary_file(folder, name))
        # Last: `read` looks for it.
        write_text(positions_file(folder, name), json.dumps({"unit": "slices", "slabs": slabs}) + "\n")

    @classmethod
    def read(cls, folder: Path, name: str) -> Auxiliary | None:
        """The outputs that `write` has written; None if there are none. Raises UserError for broken files."""
        path = positions_file(folder, name)
        if not path.is_file():
            return None
        try:
            positions = tuple(_slab(entry) for entry in read_object(path)["slabs"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(f"{path}: cannot be read: it is not what a prediction writes: {shown(error)}") from None
        file = boundary_file(folder, name)
        return cls(read_label(file) if file.is_file() else None, positions)


def _slab(entry: dict[str, Any]) -> SlabPositions:
    """Raises an error of any kind for an entry of another form."""
    slices, positions = entry["slices"], np.array(entry["relative_position"], dtype=np.float64)
    if not all(type(index) is int and index >= 0 for index in slices):
        raise ValueError("slices are no indices")
    if positions.shape != (len(slices), len(slices)) or not (np.abs(positions) < _FARTHEST).all():
        raise ValueError("relative_position is no square of numbers of slices")
    return SlabPositions(tuple(slices), positions.astype(np.float32))


def boundary_file(folder: Path, name: str) -> Path:
    """The file of a boundary map."""
    return folder / f"{name}_boundary.nii.gz"


def positions_file(folder: Path, name: str) -> Path:
    """The file of relative positions."""
    return folder / f"{name}_positions.json"


class PredictOptions(TypedDict, total=False):
    """The keyword arguments of a `Segmenter`, which may be left out or None."""

    reference: Volume | None
    """A mask on the same grid, for a model that takes boxes, which are drawn around its classes."""
    probabilities: Path | None
    """A path prefix; also write PREFIX_CLASS.nii.gz for every class, see `writing_probabilities`."""
    on_slice: Callable[[int, int], None] | None
    """Called in this thread after each slice, with the number of finished slices and of all slices."""
    cancel: Event | None
    """Set it from another thread to end the prediction."""


class Segmenter(Protocol):
    """A trained model of any system."""

    labels: Mapping[int, str]
    """The mask value and the name of class 1..K, by ascending value."""

    @property
    def num_channels(self) -> int:
        """The number of channels of the volumes that the model takes."""

    def __call__(self, volume: Volume, **options: Unpack[PredictOptions]) -> Volume:
        """The mask of a volume, on the volume's grid; uint8, or uint16 where a label value exceeds 255.

        Raises:
            Cancelled: `cancel` was set. ConfigError: a reference is missing, or the model takes none. VolumeError: the
                model cannot take the volume or the reference. UserError: the probabilities cannot be written.
        """

    def with_auxiliary(self, volume: Volume, **options: Unpack[PredictOptions]) -> tuple[Volume, Auxiliary]:
        """The mask and the outputs of BD and SRPP. Raises ConfigError if the model has neither."""


class WithoutAuxiliary:
    """Base of segmenters that have neither BD nor SRPP."""

    def with_auxiliary(self, volume: Volume, **options: Unpack[PredictOptions]) -> tuple[Volume, Auxiliary]:
        """Raise ConfigError."""
        raise ConfigError("this model makes no boundary maps and no relative positions")


def refuse_boxes(reference: Volume | None) -> None:
    """Raise ConfigError if there is a reference, for models that take no boxes."""
    if reference is not None:
        raise ConfigError("this model takes no boxes: it was trained without prompts")


def require_not_cancelled(cancel: Event | None) -> None:
    """Raise Cancelled if the event is set."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("the prediction was cancelled")
