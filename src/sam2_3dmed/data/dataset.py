"""The cases of a data set, found in the three layouts people have: MSD, nnU-Net raw, or a pair of folders."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam2_3dmed.data import dataset_json as description
from sam2_3dmed.errors import DataError
from sam2_3dmed.volume.files import ENDINGS, case_name, list_volumes, read_channels, require_same_grid
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

MAX_CHANNELS = 3
_FOLDER_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class Case:
    """One scan. `images` is one file, or one per channel; `label` is None where there is no annotation."""

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def num_bytes(self) -> int:
        """The size of its files on disk; a missing file counts nothing."""
        files = [*self.images, *([self.label] if self.label else [])]
        return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(frozen=True)
class MedicalDataset:
    """The labelled cases of a data set, sorted by name.

    channels: modality names such as ("CT",). labels: foreground names by label value, ascending. Both are
    empty where the layout does not tell (a pair of folders); the fingerprint finds them. unlabelled: images
    that have no label.
    """

    name: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[int, str]
    unlabelled: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labelled cases, ascending."""
        return tuple(case.name for case in self.cases)

    def subset(self, names: Collection[str]) -> "MedicalDataset":
        """The same data set with the named cases only."""
        return replace(self, cases=tuple(case for case in self.cases if case.name in names))


def read_dataset(path: Path | str) -> MedicalDataset:
    """The data set in a folder.

    With `dataset.json`: the Medical Segmentation Decathlon's layout ("training") or nnU-Net v2's
    ("channel_names"). Without: `images` and `labels` (or `imagesTr` and `labelsTr`) with equal file names. No
    image is opened here: `read_case` does that.

    Raises:
        DataError: no such folder, no known layout, no labelled case, a broken `dataset.json`, a path in it
            that leaves the folder, a file that is missing, a name that two cases share, more than three
            channels.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    file = root / "dataset.json"
    if not file.is_file():
        return _read_folders(root)
    content = description.read(file)
    if "channel_names" in content:
        return _read_nnunet(root, file, content)
    if "training" in content:
        return _read_msd(root, file, content)
    raise DataError(f'{file}: has neither "training" (MSD) nor "channel_names" (nnU-Net v2)')


def read_case(case: Case, allowed: Collection[int] | None = None) -> tuple[Volume, Volume | None]:
    """The image, (X, Y, Z) or (X, Y, Z, C), and the label (X, Y, Z) of a case; None where it has no label.

    allowed: the foreground values a label may hold besides 0; None allows any.

    Raises:
        VolumeError: an unreadable file, a value that is not allowed, or two files of the case on different
            grids.
    """
    image = read_channels(case.images)
    if case.label is None:
        return image, None
    label = read_label(case.label, allowed)
    require_same_grid(image, case.images[0], label, case.label)
    return image, label


def _read_msd(root: Path, file: Path, content: Mapping[str, Any]) -> MedicalDataset:
    channels = description.channel_names(file, content.get("modality", {}), "modality")
    cases: list[Case] = []
    for image, label in description.training_entries(file, content["training"]):
        paths = [description.inside(root, file, part) for part in image]
        if paths[0].name.startswith("._"):
            continue
        name = case_name(paths[0], channel_suffix=len(paths) > 1)
        if len(paths) == 1 and not paths[0].is_file():  # nnU-Net v1: NAME is named, NAME_0000, ... are there
            paths = _channel_files(paths[0].parent, name, len(channels)) or paths
        cases.append(Case(name, tuple(paths), description.inside(root, file, label) if label else None))
    return _catalog(root, content, cases, channels, description.foreground(file, content.get("labels")), file)


def _read_nnunet(root: Path, file: Path, content: Mapping[str, Any]) -> MedicalDataset:
    channels = description.channel_names(file, content["channel_names"], "channel_names")
    labels = description.foreground(file, content.get("labels"))
    ending = content.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise DataError(f'{file}: "file_ending" is {ending!r}; only {" and ".join(ENDINGS)} can be read')
    if "dataset" in content:
        cases = [
            Case(
                name,
                tuple(description.inside(root, file, p) for p in images),
                description.inside(root, file, label),
            )
            for name, images, label in description.dataset_entries(file, content["dataset"])
        ]
        return _catalog(root, content, cases, channels, labels, file)
    images = _list_files(root / "imagesTr", (ending,))
    annotated = _list_files(root / "labelsTr", (ending,))
    cases = [
        Case(name, tuple(root / "imagesTr" / f"{name}_{i:04d}{ending}" for i in range(len(channels))), label)
        for name, label in annotated.items()
    ]
    unlabelled = sorted({name[:-5] for name in images if name.endswith("_0000")} - set(annotated))
    return _catalog(root, content, cases, channels, labels, file, unlabelled)


def _read_folders(root: Path) -> MedicalDataset:
    pair = next((p for p in _FOLDER_PAIRS if (root / p[0]).is_dir() and (root / p[1]).is_dir()), None)
    if pair is None:
        raise DataError(f"{root}: has no dataset.json, nor the folders images and labels (or imagesTr and labelsTr)")
    images, annotated = (_list_files(root / folder, ENDINGS) for folder in pair)
    cases: list[Case] = []
    used: set[str] = set()
    for name, label in annotated.items():
        files = [images[name]] if name in images else _channel_files(root / pair[0], name)
        used.update(case_name(file) for file in files)
        cases.append(Case(name, tuple(files) or (root / pair[0] / label.name,), label))
    counts = {len(case.images): case.name for case in cases if case.images[0].is_file()}
    if len(counts) > 1:
        found = " and ".join(f"{name} has {count}" for count, name in sorted(counts.items()))
        raise DataError(f"{root / pair[0]}: all cases need equally many channel files, but {found}")
    unlabelled = sorted(set(images) - used)
    return _catalog(root, {}, cases, (), {}, root / pair[1], unlabelled)


def _catalog(
    root: Path,
    content: Mapping[str, Any],
    cases: Sequence[Case],
    channels: tuple[str, ...],
    labels: dict[int, str],
    source: Path,
    unlabelled: Sequence[str] = (),
) -> MedicalDataset:
    """Check what all layouts have in common; `source` is the file or folder to blame."""
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            raise DataError(f"{source}: {count} cases have the name {name!r}")
    labelled = sorted((case for case in cases if case.label is not None), key=lambda case: case.name)
    if not labelled:
        raise DataError(f"{source}: no labelled case found")
    most = max(len(channels), *(len(case.images) for case in labelled))
    if most > MAX_CHANNELS:
        raise DataError(f"{source}: {most} channels, but at most {MAX_CHANNELS} can be used")
    missing = [f for case in labelled for f in (*case.images, case.label) if f is not None and not f.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: no such file, but {source} asks for it{more}")
    title = content.get("name")
    name = title if isinstance(title, str) and title.strip() else root.resolve().name
    without = {*unlabelled, *(case.name for case in cases if case.label is None)}
    return MedicalDataset(name, tuple(labelled), channels, labels, tuple(sorted(without)))


def _list_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The image files of a folder by case name, ascending, without hidden ones and macOS's `._` copies."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for file in list_volumes(folder, endings):
        name = case_name(file)
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {file.name} are two files of the same name")
        found[name] = file
    return found


def _channel_files(folder: Path, name: str, count: int | None = None) -> list[Path]:
    """NAME_0000, NAME_0001, ... as far as they exist; with `count`, that many or an empty list."""
    files: list[Path] = []
    while count is None or len(files) < count:
        stem = f"{name}_{len(files):04d}"
        file = next((folder / (stem + e) for e in ENDINGS if (folder / (stem + e)).is_file()), None)
        if file is None:
            break
        files.append(file)
    return files if count is None or len(files) == count else []
