"""DICOM studies with their annotations (SEG, RTSTRUCT) as a data set in the Decathlon's layout."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.files import HEADER_TAGS, opened, read_elements, read_headers
from sam2_3dmed.dicom.segmentation import read_segments, segment_codes, segment_names
from sam2_3dmed.dicom.series import DicomSeries, Group, image_groups, make_series
from sam2_3dmed.dicom.structures import read_structures, structure_names
from sam2_3dmed.errors import ConfigError, DataError, UserError
from sam2_3dmed.processes.atomic import make_folder, write_text

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

Labels = Sequence[tuple[str, int]]
"""Names of segments or regions with the value each gets; a later one wins where two overlap."""

_TAGS = (*HEADER_TAGS, "SegmentSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence")


@dataclass(frozen=True)
class Study:
    """An image series and the annotations that refer to it."""

    name: str
    image: Group
    annotations: Group


def prepare(
    studies: Path, folder: Path, labels: Labels = (), progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[str], dict[str, str]]:
    """Make `folder`, a data set with imagesTr, labelsTr and dataset.json, of all annotated series in `studies`.

    Args:
        studies: a folder of any depth, or a zip.
        labels: empty takes every name that occurs, with the values 1, 2, ... by name.

    Returns:
        The names of the cases, and the reason for each that failed.

    Raises:
        DataError: no annotated series, several modalities, no such label, no case that works; or `folder` is
            not empty.
    """
    found = find_studies(studies)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not an empty folder")
    modalities = Counter(str(study.image[0][1].get("Modality", "unknown")) for study in found)
    if len(modalities) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(modalities.items()))
        raise DataError(f"{studies}: one data set has one modality, but there are {listed}; prepare them one by one")
    chosen = _choose_labels(studies, found, labels)
    cases: list[str] = []
    failures: dict[str, str] = {}
    for done, study in enumerate(found, start=1):
        try:
            _write_case(studies, study, folder, chosen)
            cases.append(study.name)
        except UserError as error:
            logger.warning("%s failed; the reason follows at the end", study.name)
            failures[study.name] = str(error)
        progress(done, len(found))
    if not cases:
        raise DataError(f"{studies}: no case could be made; the first: {next(iter(failures.values()))}")
    codes: dict[str, Code] = {}
    for study in found:
        for _, header in study.annotations:
            codes |= segment_codes(header)
    _write_dataset_json(studies, folder, cases, next(iter(modalities)), chosen, codes)
    return cases, failures


def parse_labels(texts: Sequence[str]) -> Labels:
    """`NAME=VALUE` of the command line. One value may have several names; the first becomes the class's.

    Raises:
        ConfigError: of another form, or a value that is not 1 to 65535.
    """
    labels = []
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name.strip() or not value.strip().isdigit() or not 1 <= int(value) <= 65535:
            raise ConfigError(f"--labels {text}: expected NAME=VALUE with a value from 1, such as liver=1")
        labels.append((name.strip(), int(value)))
    return labels


def find_studies(path: Path) -> list[Study]:
    """Every image series that an annotation refers to, named by the folders that their files have in common.

    Raises:
        DataError: there is none.
        VolumeError: as `read_headers`.
    """
    headers, _ = read_headers(path, _TAGS)
    images = image_groups(headers)
    annotations: dict[str, Group] = {}
    for file, header in headers:
        if header.get("Modality") in ("SEG", "RTSTRUCT"):
            for uid in set(_referred_series(header)) & set(images):
                annotations.setdefault(uid, []).append((file, header))
    if not annotations:
        raise DataError(f"{path}: no DICOM-SEG or RTSTRUCT here that refers to an image series here")
    names: Counter[str] = Counter()
    studies = []
    for uid, group in sorted(annotations.items(), key=lambda item: images[item[0]][0][0]):
        folder = Path(commonpath([Path(str(file)).parent for file, _ in (*images[uid], *group)]))
        parts = folder.relative_to(path).parts if folder.is_relative_to(path) else ()
        name = "_".join(parts) or path.resolve().name.removesuffix(".zip")
        names[name] += 1
        studies.append(Study(name if names[name] == 1 else f"{name}_{names[name]}", images[uid], group))
    return studies


def _referred_series(header: Dataset) -> Iterator[str]:
    """The UIDs of the series that a SEG (directly) or an RTSTRUCT (two levels down) refers to."""
    for series in header.get("ReferencedSeriesSequence", []):
        yield str(series.get("SeriesInstanceUID", ""))
    for space in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in space.get("RTReferencedStudySequence", []):
            for series in study.get("RTReferencedSeriesSequence", []):
                yield str(series.get("SeriesInstanceUID", ""))


def _choose_labels(path: Path, studies: Sequence[Study], labels: Labels) -> Labels:
    headers = [header for study in studies for _, header in study.annotations]
    names = {name for header in headers for name in (segment_names(header) | structure_names(header)).values()}
    missing = [name for name, _ in labels if name not in names]
    if missing or not names:
        there = ", ".join(sorted(names)) or "none"
        raise DataError(f"{path}: no annotation is called {', '.join(missing) or 'anything'}; there are: {there}")
    return labels or [(name, value) for value, name in enumerate(sorted(names), start=1)]


def _write_case(root: Path, study: Study, folder: Path, labels: Labels) -> None:
    series = make_series(root, study.image)
    label = _label(study, series, labels)
    image = series.read()
    for part, volume in (("imagesTr", image), ("labelsTr", image.with_array(label))):
        make_folder(folder / part)
        volume.write(folder / part / f"{study.name}.nii.gz")


def _label(study: Study, series: DicomSeries, labels: Labels) -> NDArray[np.integer]:
    """The classes of a case, (X, Y, Z). Warns of overlapping classes, since the last of them wins."""
    values = dict(labels)
    order = [name for name, _ in labels]
    label = np.zeros(series.shape, np.uint8 if max(values.values()) < 256 else np.uint16)
    rank = np.zeros(series.shape, np.uint16)
    found, overlapping = False, 0
    for file, stream in opened(file for file, _ in study.annotations):
        dataset = read_elements(file, stream, stop_before_pixels=False)
        read = read_segments if dataset.Modality == "SEG" else read_structures
        for name, mask in read(file, dataset, series, order):
            found = True
            mine = order.index(name) + 1
            overlapping += int(np.count_nonzero(mask & (label > 0) & (label != values[name])))
            mask &= rank < mine
            label[mask], rank[mask] = values[name], mine
    if not found:
        raise DataError(f"{study.annotations[0][0]}: none of the labels {', '.join(order)} in this case")
    if overlapping:
        logger.warning("%s: classes overlap in %d voxels; the later label wins", study.name, overlapping)
    return label


def _write_dataset_json(
    studies: Path, folder: Path, cases: Sequence[str], modality: str, labels: Labels, codes: dict[str, Code]
) -> None:
    names: dict[int, str] = {}
    for name, value in labels:
        names.setdefault(value, name)
    content = {
        "name": studies.resolve().name.removesuffix(".zip"),
        "modality": {"0": {"MR": "MRI"}.get(modality, modality)},
        "labels": {"0": "background", **{str(value): name for value, name in sorted(names.items())}},
        "codes": {name: codes[name] for name, _ in labels if name in codes},
        "numTraining": len(cases),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in cases],
        "test": [],
    }
    write_text(folder / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
