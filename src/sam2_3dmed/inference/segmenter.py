"""What everything that predicts is for those who only want masks: whatever kind of model it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.volume.volume import Volume


class Segmenter(Protocol):
    """A volume in, its mask out, on the same grid."""

    labels: dict[int, str]
    """For class 1..K its value in a mask, ascending, and its name."""

    def __call__(self, volume: Volume, probabilities: Path | None = None) -> Volume:
        """The mask of a volume.

        probabilities: also write PROBABILITIES_CLASS.nii.gz for every class, see `writing_probabilities`.

        Raises:
            UserError: a volume that the model cannot take, or files that cannot be written.
        """

    def with_auxiliary(self, volume: Volume, probabilities: Path | None = None) -> tuple[Volume, Auxiliary]:
        """The mask, and what BD and SRPP said on the way.

        Raises:
            ConfigError: the model has neither. UserError: as for the mask alone.
        """
