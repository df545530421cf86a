"""DICOM studies with their annotations (SEG, RTSTRUCT) as a data set in the Decathlon's layout."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import count
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.dicom.files import (
    HEADER_TAGS,
    DicomFile,
    left_out,
    opened,
    read_elements,
    read_headers,
    readable,
    reading,
)
from sam2_3dmed.dicom.segmentation import drawn_segments, read_segments, segment_codes, segment_names
from sam2_3dmed.dicom.series import DicomSeries, Group, image_groups, make_series
from sam2_3dmed.dicom.structures import drawn_structures, read_structures, referred_series, structure_names
from sam2_3dmed.errors import ConfigError, DataError, UserError, VolumeError
from sam2_3dmed.processes import journal
from sam2_3dmed.processes.atomic import make_folder, write_text
from sam2_3dmed.processes.unfinished import making

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

Labels = Sequence[tuple[str, int]]
"""Names of segments or regions with the value each gets; a later one wins where two overlap."""

_TAGS = (
    *HEADER_TAGS,
    *("SegmentSequence", "SegmentationType", "PixelPaddingValue"),
    *("StructureSetROISequence", "ReferencedFrameOfReferenceSequence"),
    *("StructureSetDate", "StructureSetTime", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime"),
)


_OF_LAYOUT = ("background", "ignore")
"""Names that mean something else than a class in dataset.json."""


@dataclass(frozen=True)
class Annotation:
    """A SEG or an RTSTRUCT, with the names of what it has drawn in a series."""

    file: DicomFile
    header: Dataset
    names: frozenset[str]

    @property
    def made_at(self) -> str:
        """Date and time, for the order of versions; empty where it names none."""
        moments = (
            "".join(str(self.header.get(f"{event}{part}") or "") for part in ("Date", "Time"))
            for event in ("StructureSet", "Content", "Series")
        )
        return next(filter(None, moments), "")


@dataclass(frozen=True)
class Study:
    """An image series and the annotations that refer to it."""

    name: str
    image: Group
    annotations: list[Annotation]


def prepare(
    studies: Path, folder: Path, labels: Labels = (), progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[str], dict[str, str]]:
    """Make `folder`, a data set with imagesTr, labelsTr and dataset.json, of all annotated series in `studies`.

    A call that was killed is called again: it passes over the cases that are whole. Until then `read_dataset` refuses
    the folder.

    Args:
        studies: a folder of any depth, or a zip.
        labels: empty takes every name that occurs, with the values 1, 2, ... by name.

    Returns:
        The names of the cases, and the reason for each that failed.

    Raises:
        DataError: no annotated series, several modalities, no such label, no case that works; or `folder` is
            not empty.
    """
    found, damaged = find_studies(studies)
    modalities = Counter(str(study.image[0][1].get("Modality", "unknown")) for study in found)
    if len(modalities) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(modalities.items()))
        raise DataError(f"{studies}: one data set has one modality, but there are {listed}; prepare them one by one")
    chosen = _choose_labels(studies, found, labels)
    cases: list[str] = []
    failures: dict[str, str] = {}
    with making(folder) as unfinished:
        for done, study in enumerate(found, start=1):
            try:
                made_of = _made_of(study, chosen)
                if not unfinished.has(study.name, made_of):
                    outputs = _write_case(studies, study, folder, chosen, damaged)
                    unfinished.note(study.name, made_of, outputs)
                cases.append(study.name)
            except UserError as error:
                logger.warning("%s failed; the reason follows at the end", study.name)
                failures[study.name] = str(error)
            progress(done, len(found))
        unfinished.remove_all_but(cases)
        if not cases:
            raise DataError(f"{studies}: no case could be made; the first: {next(iter(failures.values()))}")
        codes: dict[str, Code] = {}
        for study in found:
            for annotation in study.annotations:
                codes |= segment_codes(annotation.header)
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


def find_studies(path: Path) -> tuple[list[Study], dict[str, str]]:
    """Every image series that an annotation refers to, named by the folders that their files have in common.

    An annotation without references belongs to the series of its contours' images, else to those of its frame of
    reference.

    Returns:
        The studies, and the damaged images of `read_headers`.

    Raises:
        DataError: there is none.
        VolumeError: as `read_headers`.
    """
    headers, damaged = read_headers(path, _TAGS)
    images = image_groups(headers)
    place = _Places(images)
    annotations: dict[str, list[Annotation]] = {}
    unmatched: list[str] = []
    for file, header in _without_copies(headers):
        try:
            with reading(file, "what it refers to or names is"):
                contours = _contours(file) if header.get("Modality") == "RTSTRUCT" else None
                names = {uid: _names(header, contours, uid, place.space_of[uid]) for uid in place.of(header, contours)}
        except VolumeError as error:
            unmatched.append(str(error))
            continue
        for uid, drawn in names.items():
            annotations.setdefault(uid, []).append(Annotation(file, header, drawn))
        if not names:
            referred = ", ".join(sorted(_referred_series(header))) or "no series, image or frame of reference of these"
            unmatched.append(f"{file} refers to {referred}")
    left_out(path, "annotations without images here", unmatched)
    if not annotations:
        raise DataError(f"{path}: no DICOM-SEG or RTSTRUCT here that refers to an image series here")
    groups = sorted(annotations.items(), key=lambda item: images[item[0]][0][0])
    folders = []
    for uid, group in groups:
        files = [*(file for file, _ in images[uid]), *(annotation.file for annotation in group)]
        folder = Path(commonpath({file.folder for file in files}))
        parts = folder.relative_to(path).parts if folder.is_relative_to(path) else ()
        folders.append(readable("_".join(parts) or path.resolve().name.removesuffix(".zip")))
    studies = [Study(name, images[uid], group) for name, (uid, group) in zip(_unique(folders), groups, strict=True)]
    return studies, damaged


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number after each that another has, too. Capitals make no other name, nor do they in files."""
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    unique = []
    for name in names:
        chosen = name
        if name.casefold() in seen:
            chosen = next(f"{name}_{n}" for n in count(2) if f"{name}_{n}".casefold() not in taken)
        taken.add(chosen.casefold())
        seen.add(name.casefold())
        unique.append(chosen)
    return unique


class _Places:
    """The image series by what an annotation can name: their UIDs, their images, their frames of reference."""

    def __init__(self, images: Mapping[str, Group]) -> None:
        self.space_of: dict[str, str] = {}
        self.of_image: dict[str, str] = {}
        self.of_space: dict[str, list[str]] = {}
        for uid, group in images.items():
            spaces = [space for _, header in group if (space := str(header.get("FrameOfReferenceUID") or ""))]
            self.space_of[uid] = spaces[0] if spaces else ""
            self.of_image |= {str(header.get("SOPInstanceUID", "")): uid for _, header in group}
            for space in spaces[:1]:
                self.of_space.setdefault(space, []).append(uid)

    def of(self, header: Dataset, contours: Dataset | None) -> list[str]:
        """The series to which a SEG or an RTSTRUCT belongs."""
        if named := _referred_series(header):
            return sorted(named & self.space_of.keys())
        if by_image := {self.of_image[uid] for uid in _referred_images(header, contours) if uid in self.of_image}:
            return sorted(by_image)
        spaces = [header, *header.get("ReferencedFrameOfReferenceSequence", [])]
        return sorted({uid for item in spaces for uid in self.of_space.get(str(item.get("FrameOfReferenceUID")), [])})


def _without_copies(headers: Group) -> Group:
    """The annotations, each once. A program that edits one may keep its UID, so only equal files are copies."""
    annotations = [(file, header) for file, header in headers if str(header.get("Modality")) in ("SEG", "RTSTRUCT")]
    counts = Counter(str(header.get("SOPInstanceUID", "")) for _, header in annotations)
    shared = [file for file, header in annotations if counts[str(header.get("SOPInstanceUID", ""))] > 1]
    digests = {file: sha256(stream.read()).hexdigest() for file, stream in opened(shared)}
    found: dict[str, tuple[DicomFile, Dataset]] = {}
    for file, header in annotations:
        found.setdefault(digests.get(file) or str(file), (file, header))
    return list(found.values())


def _contours(file: DicomFile) -> Dataset:
    ((_, contours),) = ((file, read_elements(file, stream, ["ROIContourSequence"])) for file, stream in opened([file]))
    return contours


def _names(header: Dataset, contours: Dataset | None, series_uid: str, space_uid: str) -> frozenset[str]:
    """The names of what is drawn in a series."""
    if contours is None:
        names, drawn = segment_names(header), drawn_segments(header)
    else:
        names, drawn = structure_names(header, series_uid, space_uid), drawn_structures(contours)
    return frozenset(name for number, name in names.items() if number in drawn)


def _referred_series(header: Dataset) -> set[str]:
    """The UIDs of the series that a SEG (directly) or an RTSTRUCT (two levels down) refers to."""
    direct = {str(series.get("SeriesInstanceUID", "")) for series in header.get("ReferencedSeriesSequence", [])}
    nested = map(referred_series, header.get("ReferencedFrameOfReferenceSequence", []))
    return direct.union(*nested) - {""}


def _referred_images(header: Dataset, contours: Dataset | None) -> Iterator[str]:
    """The UIDs of the images that the slices of a SEG or the contours of an RTSTRUCT refer to."""
    if contours is None:
        nested = header.get("PerFrameFunctionalGroupsSequence", []), "DerivationImageSequence", "SourceImageSequence"
    else:
        nested = contours.get("ROIContourSequence", []), "ContourSequence", "ContourImageSequence"
    items, outer, inner = nested
    for item in (item for group in items for item in group.get(outer, [])):
        yield from (str(image.get("ReferencedSOPInstanceUID")) for image in item.get(inner, []))


def _choose_labels(path: Path, studies: Sequence[Study], labels: Labels) -> Labels:
    names = {name for study in studies for annotation in study.annotations for name in annotation.names}
    missing = [name for name, _ in labels if name not in names]
    if missing or not names:
        there = ", ".join(sorted(names)) or "none"
        raise DataError(f"{path}: no annotation is called {', '.join(missing) or 'anything'}; there are: {there}")
    return labels or [(name, value) for value, name in enumerate(sorted(names), start=1)]


def _made_of(study: Study, labels: Labels) -> str:
    """A digest of everything that decides the files of a case."""
    files = [*(file for file, _ in study.image), *(annotation.file for annotation in study.annotations)]
    _, state = journal.state(sorted({file.path for file in files}))
    content = [version("sam2-3dmed"), state, list(labels), sorted(map(str, files))]
    return sha256(json.dumps(content).encode()).hexdigest()


def _write_case(root: Path, study: Study, folder: Path, labels: Labels, damaged: Mapping[str, str]) -> list[Path]:
    series = make_series(root, study.image, damaged)
    label = _label(study, series, labels)
    image = series.read()
    outputs = [folder / part / f"{study.name}.nii.gz" for part in ("imagesTr", "labelsTr")]
    for file, volume in zip(outputs, (image, image.with_array(label)), strict=True):
        make_folder(file.parent)
        volume.write(file)
    return outputs


def _label(study: Study, series: DicomSeries, labels: Labels) -> NDArray[np.integer]:
    """The classes of a case, (X, Y, Z). Warns of overlapping classes, since the last of them wins."""
    values = dict(labels)
    order = [name for name, _ in labels]
    label = np.zeros(series.shape, np.uint8 if max(values.values()) < 256 else np.uint16)
    rank = np.zeros(series.shape, np.uint16)
    found, overlapping = False, 0
    newest = _newest(study)
    by_file = {annotation.file: annotation for annotation in study.annotations}
    for file, stream in opened(by_file):
        dataset = read_elements(file, stream, stop_before_pixels=False)
        read = read_segments if dataset.Modality == "SEG" else read_structures
        wanted = [name for name in order if newest.get(name, by_file[file]) is by_file[file]]
        drawn: Counter[str] = Counter()
        with reading(file, "what it has drawn is"):
            for name, mask in read(file, dataset, series, wanted):
                found = True
                drawn[name] += 1
                mine = order.index(name) + 1
                overlapping += int(np.count_nonzero(mask & (label > 0) & (label != values[name])))
                mask &= rank < mine
                label[mask], rank[mask] = values[name], mine
        for name in (name for name, times in drawn.items() if times > 1):
            logger.warning("%s: %s draws %r %d times; all are taken as one", study.name, file, name, drawn[name])
    if not found:
        raise DataError(f"{study.annotations[0].file}: none of the labels {', '.join(order)} in this case")
    if overlapping:
        logger.warning("%s: classes overlap in %d voxels; the later label wins", study.name, overlapping)
    if not label.any():
        logger.warning("%s: none of the labels %s is drawn in this case", study.name, ", ".join(order))
    return label


def _newest(study: Study) -> dict[str, Annotation]:
    """The annotation to take for each name. Warns where there are several: readers or versions are not mixed."""
    chosen: dict[str, Annotation] = {}
    for annotation in sorted(study.annotations, key=lambda item: (item.made_at, item.file)):
        for name in sorted(annotation.names & chosen.keys()):
            listed = f"{chosen[name].file} and {annotation.file}"
            logger.warning("%s: %r is drawn in %s; the newer one, the latter, is taken", study.name, name, listed)
        chosen |= dict.fromkeys(annotation.names, annotation)
    return chosen


def _class_name(name: str) -> str:
    """The class of a segment or region in dataset.json."""
    return f"{name} (drawn)" if name.strip().lower() in _OF_LAYOUT else name


def _write_dataset_json(
    studies: Path, folder: Path, cases: Sequence[str], modality: str, labels: Labels, codes: dict[str, Code]
) -> None:
    names: dict[int, str] = {}
    for name, value in labels:
        names.setdefault(value, _class_name(name))
    content = {
        "name": studies.resolve().name.removesuffix(".zip"),
        "modality": {"0": {"MR": "MRI"}.get(modality, modality)},
        "labels": {"0": "background", **{str(value): name for value, name in sorted(names.items())}},
        "codes": {_class_name(name): codes[name] for name, _ in labels if name in codes},
        "numTraining": len(cases),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in cases],
        "test": [],
    }
    write_text(folder / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
