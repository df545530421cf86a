"""The file formats of masks: NIfTI, NRRD, and DICOM that refers to the series a mask was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.dicom.sources import require_sources
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume


class Writer(NamedTuple):
    """How masks of a format are written."""

    ending: str
    function: str
    """`module:name` of a function of a mask and a path, imported when it is needed."""
    arguments: tuple[str, ...] = ()
    """Its further arguments, of `labels`, `codes` and `series`."""


FORMATS: Mapping[str, Writer] = {
    "nifti": Writer(".nii.gz", "sam2_3dmed.volume.volume:Volume.write"),
    "mha": Writer(".mha", "sam2_3dmed.volume.volume:Volume.write"),
    "nrrd": Writer(".seg.nrrd", "sam2_3dmed.volume.nrrd:write_segmentation_nrrd", ("labels",)),
    "dicom-seg": Writer(".seg.dcm", "sam2_3dmed.dicom.segmentation:write_segmentation", ("series", "labels", "codes")),
    "rtstruct": Writer(".rtstruct.dcm", "sam2_3dmed.dicom.structures:write_structures", ("series", "labels")),
}
"""From the name after `predict --format`. A file with a function and a line here add a format."""


@dataclass(frozen=True)
class MaskFormat:
    """A format, checked, and what it takes. labels: the name of each value above 0; codes: DICOM codes by name.

    Of a region, a file has what no later one covers, under a name that says so.
    """

    name: str = "nifti"
    labels: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[str, Code] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise ConfigError(f"--format {self.name}: expected {', '.join(FORMATS)}")

    @property
    def ending(self) -> str:
        return FORMATS[self.name].ending

    def require(self, series: DicomSeries | None) -> None:
        """Raise DataError if this format refers to a DICOM series and there is none, or VolumeError if it cannot be."""
        if "series" not in FORMATS[self.name].arguments:
            return
        if series is None:
            raise DataError(f"--format {self.name} refers to a DICOM series, which this input is not")
        require_sources(series)

    def write(self, mask: Volume, path: Path, series: DicomSeries | None = None) -> None:
        """Write a mask, whole or not at all. series: the DICOM input that the mask was made from."""
        if series is None:
            self.require(series)
        writer = FORMATS[self.name]
        values = {"labels": LabelScheme.of(self.labels).parts, "codes": self.codes, "series": series}
        resolve_name(writer.function)(mask, path=path, **{name: values[name] for name in writer.arguments})
