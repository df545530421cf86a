"""What `dataset.json` says, checked: labels, channels, entries, and paths that stay inside the data set."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sam2_3dmed.errors import DataError


def read(file: Path) -> dict[str, Any]:
    """The object in a `dataset.json`.

    Raises:
        DataError: unreadable, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: broken JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: an object is expected, not a {type(content).__name__}")
    return content


def foreground(file: Path, labels: Any) -> dict[int, str]:
    """Class names by label value, ascending, without the background; from {"1": "liver"} or {"liver": 1}.

    Raises:
        DataError: no labels, region-based or ignore labels, a value twice, a name twice, values beyond
            0..65535.
    """
    if not isinstance(labels, dict) or not labels:
        raise DataError(f'{file}: "labels" must name the classes, such as {{"background": 0, "liver": 1}}')
    names: dict[int, str] = {}
    for value, name in (_label(file, key, item) for key, item in labels.items()):
        if value in names:
            raise DataError(f'{file}: "labels" gives the value {value} twice ({names[value]!r} and {name!r})')
        names[value] = name
    names.pop(0, None)
    if not names:
        raise DataError(f'{file}: "labels" names no class besides the background')
    if len(set(names.values())) < len(names):
        raise DataError(f'{file}: "labels" gives the same name to two values: {sorted(names.values())}')
    return dict(sorted(names.items()))


def _label(file: Path, key: str, item: Any) -> tuple[int, str]:
    if isinstance(item, list):
        raise DataError(
            f"{file}: label {key!r} is a list: region-based labels cannot be used, give one value per class"
        )
    as_key, as_item = _integer(key), _integer(item)
    if as_key is not None and (isinstance(item, str) or as_item is None):
        value, name = as_key, str(item)
    elif as_item is not None:
        value, name = as_item, key
    else:
        raise DataError(f'{file}: "labels" must pair names with whole numbers, not {key!r} with {item!r}')
    if name.strip().lower() == "ignore" and value != 0:
        raise DataError(f"{file}: an ignore label ({value}) cannot be used: sparse annotations are not supported")
    if not 0 <= value <= 65535:
        raise DataError(f"{file}: label {name!r} has the value {value}; values lie in 0 to 65535")
    return value, name


def _integer(item: Any) -> int | None:
    if isinstance(item, bool) or not isinstance(item, int | float | str):
        return None
    try:
        number = float(item)
        return int(number) if number.is_integer() else None
    except (ValueError, OverflowError):
        return None


def channel_names(file: Path, modality: Any, key: str) -> tuple[str, ...]:
    """Channel names in order, from {"0": "CT"} or ["CT"].

    Raises:
        DataError: empty, or not numbered 0, 1, ...
    """
    if isinstance(modality, list):
        modality = {str(i): name for i, name in enumerate(modality)}
    numbers = {_integer(number): str(name) for number, name in modality.items()} if isinstance(modality, dict) else {}
    if not numbers or len(numbers) != len(modality) or set(numbers) != set(range(len(numbers))):
        raise DataError(f'{file}: "{key}" must name the channels by number, such as {{"0": "CT"}}')
    return tuple(numbers[i] for i in range(len(numbers)))


def training_entries(file: Path, training: Any) -> Iterator[tuple[list[str], str | None]]:
    """The image (one path, or one per channel) and the label, if any, of each entry of MSD's "training".

    Raises:
        DataError: an entry of another form.
    """
    if not isinstance(training, list):
        raise DataError(f'{file}: "training" must be a list of {{"image": ..., "label": ...}}')
    for number, entry in enumerate(training):
        item = {"image": entry} if isinstance(entry, str) else entry
        image, label = (item.get("image"), item.get("label") or None) if isinstance(item, dict) else (None, None)
        images = [image] if isinstance(image, str) else image
        if not _is_paths(images) or not isinstance(label, str | None):
            raise DataError(f'{file}: entry {number} of "training" must be {{"image": path, "label": path}}')
        yield images, label


def dataset_entries(file: Path, dataset: Any) -> Iterator[tuple[str, list[str], str]]:
    """Name, channel files and label of every entry of nnU-Net v2's optional "dataset".

    Raises:
        DataError: an entry of another form, or a name that is no file name.
    """
    for name, entry in dataset.items() if isinstance(dataset, Mapping) else [("", None)]:
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not _is_paths(images) or not isinstance(label, str):
            raise DataError(
                f'{file}: "dataset" must hold {{NAME: {{"images": [paths], "label": path}}}} (see {name!r})'
            )
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise DataError(f'{file}: {name!r} in "dataset" cannot be a case name')
        yield name, images, label


def _is_paths(item: Any) -> TypeGuard[list[str]]:
    return isinstance(item, list) and bool(item) and all(isinstance(part, str) and part for part in item)


def inside(root: Path, file: Path, path: str) -> Path:
    """`path` below `root`; links inside the folder may lead anywhere, the path itself may not.

    Raises:
        DataError: the path is absolute or climbs out of the folder.
    """
    relative = os.path.normpath(path)
    if Path(relative).is_absolute() or Path(relative).parts[:1] == ("..",) or "\0" in path:
        raise DataError(f"{file}: the path {path!r} leaves the data set's folder")
    return root / relative
