"""What everything that predicts is for those who only want masks: whatever kind of model it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.volume.volume import Volume


class Segmenter(Protocol):
    """A volume in, its mask out, on the same grid."""

    labels: dict[int, str]
    """For class 1..K its value in a mask, ascending, and its name."""

    def __call__(self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None) -> Volume:
        """The mask of a volume.

        probabilities: also write PROBABILITIES_CLASS.nii.gz for every class, see `writing_probabilities`. reference: a
        mask on the same grid, around whose classes boxes are drawn; for a model that takes boxes, and for no other.

        Raises:
            UserError: a volume that the model cannot take, or files that cannot be written.
        """

    def with_auxiliary(
        self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None
    ) -> tuple[Volume, Auxiliary]:
        """The mask, and what BD and SRPP said on the way.

        Raises:
            ConfigError: the model has neither. UserError: as for the mask alone.
        """


def refuse_boxes(reference: Volume | None) -> None:
    """Raise ConfigError if there is a reference; for models that take no boxes."""
    if reference is not None:
        raise ConfigError("this model takes no boxes: its training knew no model.box_every")
