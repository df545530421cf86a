"""The outputs of a network besides the mask: boundaries (P_bd) and relative positions of slices (P_pos)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import make_folder, write_text
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume


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
    def read(cls, folder: Path, name: str) -> "Auxiliary | None":
        """The outputs that `write` has written; None if there are none. Raises UserError for broken files."""
        path = positions_file(folder, name)
        if not path.is_file():
            return None
        try:
            slabs = json.loads(path.read_text(encoding="utf-8"))["slabs"]
            positions = tuple(
                SlabPositions(tuple(slab["slices"]), np.array(slab["relative_position"], dtype=np.float32))
                for slab in slabs
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        file = boundary_file(folder, name)
        return cls(read_label(file) if file.is_file() else None, positions)


def boundary_file(folder: Path, name: str) -> Path:
    """The file of a boundary map."""
    return folder / f"{name}_boundary.nii.gz"


def positions_file(folder: Path, name: str) -> Path:
    """The file of relative positions."""
    return folder / f"{name}_positions.json"
