"""The cases of a data set in one of three layouts: MSD, nnU-Net raw, or a pair of folders."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import naming
from sam2_3dmed.processes.unfinished import require_finished
from sam2_3dmed.volume.files import (
    ENDINGS,
    LISTED,
    case_name,
    list_volumes,
    named_by_folder,
    read_channels,
    require_same_grid,
    uncropped,
)
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.label_scheme import LabelScheme, parse_labels, whole_number
from sam2_3dmed.volume.volume import Volume

MAX_CHANNELS = 3
UNLABELLED_FOLDER = "unlabelled"
_NO_LABELS = LabelScheme({})
_FOLDER_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class Case:
    """One scan. `images` is one file, or one per channel; `label` is None where there is no annotation."""

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> list[Path]:
        """The images, and the label if there is one."""
        return [*self.images, *filter(None, [self.label])]

    @property
    def num_bytes(self) -> int:
        """The size of its files on disk; a missing file counts nothing."""
        return sum(file.stat().st_size for file in self.files if file.is_file())


@dataclass(frozen=True)
class MedicalDataset:
    """The labelled cases of a data set, sorted by name.

    Args:
        channels: modality names such as ("CT",). Empty where the layout names none (a pair of folders).
        labels: the foreground classes by label value, with regions and the value to ignore. Empty where the layout
            names none.
        unlabelled: scans without a label: among the images of the layout, and in the folder `unlabelled`.
    """

    name: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: LabelScheme
    unlabelled: tuple[Case, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labelled cases, ascending."""
        return tuple(case.name for case in self.cases)

    def subset(self, names: Collection[str]) -> "MedicalDataset":
        """The same data set with the named cases only."""
        return replace(self, cases=tuple(case for case in self.cases if case.name in names))


def read_dataset(path: Path | str) -> MedicalDataset:
    """The data set in a folder.

    With `dataset.json`: the Medical Segmentation Decathlon's layout ("training") or nnU-Net v2's ("channel_names").
    Without: `images` and `labels` (or `imagesTr` and `labelsTr`) with equal file names. No image is opened here:
    `read_case` does that.

    Raises:
        DataError: no such folder, no known layout, no labelled case, a broken `dataset.json`, a path in it that leaves
            the folder, a missing file, a name that two cases share, more than three channels, or `prepare` has not
            finished the folder.
    """
    with naming(Path(path), "cannot be read"):  # a name in it may be longer than a file system allows
        return _read(Path(path))


def _read(root: Path) -> MedicalDataset:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    require_finished(root)
    file = root / "dataset.json"
    if not file.is_file():
        return _checked(root, *_folder_cases(root))
    content = read_object(file)
    if "channel_names" not in content and "training" not in content:
        raise DataError(f'{file}: has neither "training" (MSD) nor "channel_names" (nnU-Net v2)')
    key, read = ("channel_names", _nnunet_cases) if "channel_names" in content else ("modality", _msd_cases)
    channels = _channel_names(file, content.get(key, {}), key)
    labels = _labels(file, content)
    return _checked(root, file, read(root, file, content, len(channels)), channels, labels, content.get("name"))


def read_unlabelled(folder: Path, num_channels: int) -> list[Case]:
    """The scans in a folder: NAME_0000, NAME_0001, ... are one if there are as many as channels. Raises DataError."""
    return _without_labels(_list_files(folder, ENDINGS).values(), num_channels)


def _without_labels(files: Iterable[Path], num_channels: int) -> list[Case]:
    grouped: dict[str, list[Path]] = {}
    for file in files:
        grouped.setdefault(case_name(file, channel_suffix=True), []).append(file)
    cases = []
    for name, group in grouped.items():
        names = [case_name(file) for file in group]
        if names == [f"{name}_{channel:04d}" for channel in range(num_channels)]:
            cases.append(Case(name, tuple(group), None))
        else:
            cases += [Case(own, (file,), None) for own, file in zip(names, group, strict=True)]
    return cases


def read_case(case: Case, allowed: Collection[int] | None = None) -> tuple[Volume, Volume | None]:
    """The image, (X, Y, Z) or (X, Y, Z, C), and the label (X, Y, Z) of a case; None where it has no label.

    Args:
        allowed: the foreground values a label may hold besides 0; None: any.

    Raises:
        VolumeError: an unreadable file, a value that is not allowed, or two files of the case on different grids.
    """
    image = read_channels(case.images)
    if case.label is None:
        return image, None
    label = uncropped(read_label(case.label, allowed), case.label, image)
    require_same_grid(image, case.images[0], label, case.label)
    return image, label


def _msd_cases(root: Path, file: Path, content: Mapping[str, Any], num_channels: int) -> list[Case]:
    cases: list[Case] = []
    listed: dict[Path, dict[str, Path]] = {}
    for image, label in _training_entries(file, content["training"]):
        paths = [_inside(root, file, part) for part in image]
        if paths[0].name.startswith("._"):
            continue
        name = case_name(paths[0], channel_suffix=len(paths) > 1)
        if len(paths) == 1 and not paths[0].is_file():  # nnU-Net v1 names NAME and has NAME_0000, ...
            folder = paths[0].parent
            if folder not in listed:
                listed[folder] = _list_files(folder, ENDINGS) if folder.is_dir() else {}
            paths = _channel_files(listed[folder], name, num_channels) or paths
        cases.append(Case(name, tuple(paths), _inside(root, file, label) if label else None))
    names = named_by_folder([case.images[0] for case in cases], [case.name for case in cases])
    named = [replace(case, name=name) for case, name in zip(cases, names, strict=True)]
    return named + _unlisted(root / "imagesTr", named)


def _unlisted(folder: Path, cases: Sequence[Case]) -> list[Case]:
    """The scans in a folder that dataset.json does not list; they have no label."""
    listed = {file.absolute() for case in cases for file in case.images}
    found = [file for file in list_volumes(folder, ENDINGS) if file.absolute() not in listed] if folder.is_dir() else []
    return _without_labels(found, len(cases[0].images) if cases else 1)


def _nnunet_cases(root: Path, file: Path, content: Mapping[str, Any], num_channels: int) -> list[Case]:
    ending = content.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise DataError(f'{file}: "file_ending" is {shown(ending)}; only {LISTED} can be read')
    if "dataset" in content:
        return [
            Case(name, tuple(_inside(root, file, p) for p in images), _inside(root, file, label))
            for name, images, label in _dataset_entries(file, content["dataset"])
        ]

    def numbered(name: str) -> list[str]:
        return [f"{name}_{i:04d}" for i in range(num_channels)]

    images = _list_files(root / "imagesTr", (ending,))
    annotated = _list_files(root / "labelsTr", (ending,))
    unnamed = [name for name in annotated if f"{name}_{num_channels:04d}" in images]
    if unnamed:
        raise DataError(
            f'{file}: "channel_names" names {num_channels} channels, but {images[f"{unnamed[0]}_{num_channels:04d}"]} '
            f"is a further one{f', and so in {len(unnamed) - 1} more cases' if unnamed[1:] else ''}"
        )
    cases = [
        Case(name, tuple(images.get(n, root / "imagesTr" / (n + ending)) for n in numbered(name)), label)
        for name, label in annotated.items()
    ]
    unlabelled = {name[:-5] for name in images if name.endswith("_0000")} - set(annotated)
    return cases + [Case(name, tuple(images[n] for n in numbered(name) if n in images), None) for name in unlabelled]


def _folder_cases(root: Path) -> tuple[Path, list[Case]]:
    """The folder of the labels, and the cases."""
    pair = next((p for p in _FOLDER_PAIRS if (root / p[0]).is_dir() and (root / p[1]).is_dir()), None)
    if pair is None:
        raise DataError(f"{root}: has no dataset.json, nor the folders images and labels (or imagesTr and labelsTr)")
    images, annotated = (_list_files(root / folder, ENDINGS) for folder in pair)
    cases: list[Case] = []
    used: set[str] = set()
    for name, label in annotated.items():
        files = [images[name]] if name in images else _channel_files(images, name)
        used.update(case_name(file) for file in files)
        cases.append(Case(name, tuple(files) or (root / pair[0] / label.name,), label))
    counts = {len(case.images): case.name for case in cases if case.images[0].is_file()}
    if len(counts) > 1:
        found = " and ".join(f"{name} has {count}" for count, name in sorted(counts.items()))
        raise DataError(f"{root / pair[0]}: all cases need equally many channel files, but {found}")
    left = [file for name, file in images.items() if name not in used]
    return root / pair[1], cases + _without_labels(left, max(len(case.images) for case in cases) if cases else 1)


def _checked(
    root: Path,
    source: Path,
    cases: Sequence[Case],
    channels: tuple[str, ...] = (),
    labels: LabelScheme = _NO_LABELS,
    title: Any = None,
) -> MedicalDataset:
    """The data set, after the checks that all layouts share; `source` is the file or folder to blame."""
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            raise DataError(f"{source}: {count} cases have the name {shown(name)}")
    labelled = sorted((case for case in cases if case.label is not None), key=lambda case: case.name)
    if not labelled:
        raise DataError(f"{source}: no labelled case found")
    most = max(len(channels), *(len(case.images) for case in labelled))
    if most > MAX_CHANNELS:
        raise DataError(f"{source}: {most} channels, but at most {MAX_CHANNELS} can be used")
    missing = [file for case in labelled for file in case.files if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: no such file, but {source} asks for it{more}")
    name = title if isinstance(title, str) and title.strip() else root.resolve().name
    unlabelled = [case for case in cases if case.label is None]
    if (root / UNLABELLED_FOLDER).is_dir():
        unlabelled += read_unlabelled(root / UNLABELLED_FOLDER, len(labelled[0].images))
    return MedicalDataset(name, tuple(labelled), channels, labels, tuple(sorted(unlabelled, key=lambda c: c.name)))


def _list_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The image files of a folder by case name, ascending."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for file in list_volumes(folder, endings):
        name = case_name(file)
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {file.name} are two files of the same name")
        found[name] = file
    return found


def _channel_files(listed: Mapping[str, Path], name: str, count: int | None = None) -> list[Path]:
    """NAME_0000, NAME_0001, ... of a folder as far as they exist; with `count`, that many or an empty list."""
    files: list[Path] = []
    while (count is None or len(files) < count) and (file := listed.get(f"{name}_{len(files):04d}")):
        files.append(file)
    return files if count is None or len(files) == count else []


def _labels(file: Path, content: Mapping[str, Any]) -> LabelScheme:
    try:
        return parse_labels(content)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _channel_names(file: Path, modality: Any, key: str) -> tuple[str, ...]:
    """Channel names in order, from {"0": "CT"} or ["CT"]."""
    if isinstance(modality, list):
        modality = {str(i): name for i, name in enumerate(modality)}
    items = modality.items() if isinstance(modality, dict) else ()
    numbers = {whole_number(number): str(name) for number, name in items}
    if not numbers or len(numbers) != len(modality) or set(numbers) != set(range(len(numbers))):
        raise DataError(f'{file}: "{key}" must name the channels by number, such as {{"0": "CT"}}')
    return tuple(numbers[i] for i in range(len(numbers)))


def _training_entries(file: Path, training: Any) -> Iterator[tuple[list[str], str | None]]:
    """The image (one path, or one per channel) and the label, if any, of each entry of MSD's "training"."""
    if not isinstance(training, list):
        raise DataError(f'{file}: "training" must be a list of {{"image": ..., "label": ...}}')
    for number, entry in enumerate(training):
        item = {"image": entry} if isinstance(entry, str) else entry
        image, label = (item.get("image"), item.get("label") or None) if isinstance(item, dict) else (None, None)
        images = [image] if isinstance(image, str) else image
        if not _is_paths(images) or not isinstance(label, str | None):
            raise DataError(f'{file}: entry {number} of "training" must be {{"image": path, "label": path}}')
        yield images, label


def _dataset_entries(file: Path, dataset: Any) -> Iterator[tuple[str, list[str], str]]:
    """Name, channel files and label of every entry of nnU-Net v2's optional "dataset"."""
    for name, entry in dataset.items() if isinstance(dataset, Mapping) else [("", None)]:
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not _is_paths(images) or not isinstance(label, str):
            raise DataError(
                f'{file}: "dataset" must hold {{NAME: {{"images": [paths], "label": path}}}} (see {shown(name)})'
            )
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise DataError(f'{file}: {shown(name)} in "dataset" cannot be a case name')
        yield name, images, label


def _is_paths(item: Any) -> TypeGuard[list[str]]:
    return isinstance(item, list) and bool(item) and all(isinstance(part, str) and part for part in item)


def _inside(root: Path, file: Path, path: str) -> Path:
    """`path` below `root`; links inside the folder may lead anywhere, the path itself may not leave it."""
    relative = Path(os.path.normpath(path))
    for base in (root.absolute(), root.resolve()) if relative.is_absolute() else ():
        relative = relative.relative_to(base) if relative.is_relative_to(base) else relative
    if relative.is_absolute() or relative.parts[:1] == ("..",) or "\0" in path:
        raise DataError(f"{file}: the path {shown(path)} leaves the data set's folder")
    return root / relative
