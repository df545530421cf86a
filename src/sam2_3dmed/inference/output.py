"""A mask in the format a user wants: NIfTI, NRRD, or DICOM that refers to the series it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.volume.volume import Volume

FormatName = Literal["nifti", "nrrd", "dicom-seg", "rtstruct"]
ENDINGS: dict[FormatName, str] = {
    "nifti": ".nii.gz",
    "nrrd": ".seg.nrrd",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}


@dataclass(frozen=True)
class MaskFormat:
    """How masks are written. labels: the name of each value above 0; codes: DICOM codes by name."""

    name: FormatName = "nifti"
    labels: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[str, Code] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """What the file's name ends with."""
        return ENDINGS[self.name]

    def require(self, series: DicomSeries | None) -> None:
        """Raise DataError if this format refers to a DICOM series and there is none."""
        if series is None and self.name in ("dicom-seg", "rtstruct"):
            raise DataError(f"--format {self.name} refers to a DICOM series, which this input is not")

    def write(self, mask: Volume, path: Path, series: DicomSeries | None = None) -> None:
        """Write a mask, whole or not at all. series: where the volume came from, if from DICOM.

        Raises:
            DataError: a DICOM format without a series. VolumeError: it cannot be written.
        """
        self.require(series)
        if self.name == "nrrd":
            from sam2_3dmed.volume.nrrd import write_segmentation_nrrd

            write_segmentation_nrrd(mask, path, self.labels)
        elif self.name == "dicom-seg" and series is not None:
            from sam2_3dmed.dicom.segmentation import write_segmentation

            write_segmentation(mask, series, path, self.labels, self.codes)
        elif self.name == "rtstruct" and series is not None:
            from sam2_3dmed.dicom.structures import write_structures

            write_structures(mask, series, path, self.labels)
        else:
            mask.write(path)


def format_name(text: str) -> FormatName:
    """The text as the name of a format.

    Raises:
        ConfigError: there is no such format.
    """
    names: tuple[FormatName, ...] = get_args(FormatName)
    for name in names:
        if name == text:
            return name
    raise ConfigError(f"--format {text}: expected {', '.join(names)}")
