"""The protocol of every system that predicts: a volume in, its mask out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Protocol, TypedDict, Unpack

from sam2_3dmed.errors import Cancelled, ConfigError
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.volume.volume import Volume


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

    labels: dict[int, str]
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
        raise ConfigError("this model takes no boxes: it was trained without model.box_every")


def require_not_cancelled(cancel: Event | None) -> None:
    """Raise Cancelled if the event is set."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("the prediction was cancelled")
