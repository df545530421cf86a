"""The pairing of predictions with label files, and the names of label values."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sam2_3dmed.errors import DataError
from sam2_3dmed.volume.files import case_name, list_volumes

_MAX_NAMES = 10


class Pair(NamedTuple):
    """A case: its name, its predicted label map and its label file."""

    name: str
    prediction: Path
    truth: Path

    @property
    def num_bytes(self) -> int:
        """The size of both files; a missing file counts as 0."""
        return sum(path.stat().st_size for path in (self.prediction, self.truth) if path.is_file())


def match_files(predictions: Path, labels: Path) -> list[Pair]:
    """Pair the files of two folders by name, sorted, or two files; raise DataError if one has no counterpart."""
    if predictions.is_file() and labels.is_file():
        return [Pair(_case_name(predictions), predictions, labels)]
    predicted, true = _volumes(predictions), _volumes(labels)
    problems = [
        f"without a {kind} in {folder}: {_listed(sorted(names))}"
        for kind, folder, names in (
            ("label", labels, predicted.keys() - true.keys()),
            ("prediction", predictions, true.keys() - predicted.keys()),
        )
        if names
    ]
    if problems:
        raise DataError(f"predictions and labels do not match by name: {'; '.join(problems)}")
    return [Pair(name, predicted[name], true[name]) for name in sorted(predicted)]


def read_pairs(table: Path) -> list[Pair]:
    """Read pairs from a CSV file with the columns `prediction`, `label`, and optionally `case`.

    Paths are relative to the folder of the table. Without `case`, a case has the name of its prediction.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = list(reader.fieldnames or ())
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    missing = [column for column in ("prediction", "label") if column not in columns]
    if missing:
        raise DataError(f"{table}: its first line must name the columns prediction and label; no {_listed(missing)}")
    pairs = []
    for number, line in lines:
        if not (line["prediction"] and line["label"]):
            raise DataError(f"{table}: line {number} does not have both a prediction and a label")
        prediction, label = (table.parent / line[column] for column in ("prediction", "label"))
        pairs.append(Pair(line.get("case") or _case_name(prediction), prediction, label))
    if not pairs:
        raise DataError(f"{table}: lists no pairs")
    check_unique((pair.name for pair in pairs), str(table))
    return pairs


def read_class_names(path: str | Path) -> dict[int, str]:
    """Read the foreground classes (value -> name, ascending) from an MSD or nnU-Net dataset.json."""
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))["labels"]
        pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
        names = {int(value): str(name) for value, name in pairs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: no class names ("labels" must give each class one value): {error!r}') from error
    foreground = {value: names[value] for value in sorted(names) if value > 0}
    if not foreground:
        raise DataError(f"{path}: no class names: only the background is named")
    return foreground


def check_unique(names: Iterable[str], where: str) -> None:
    """Raise DataError, naming `where`, if a case name occurs more than once."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{where}: more than one file for {_listed(repeated)}")


def _volumes(folder: Path) -> dict[str, Path]:
    """Case name -> file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (both must be folders, or both files)")
    paths = list_volumes(folder)
    if not paths:
        raise DataError(f"{folder}: no .nii or .nii.gz files")
    check_unique(map(_case_name, paths), str(folder))
    return {_case_name(path): path for path in paths}


def _case_name(path: Path) -> str:
    """The name without nnU-Net's suffix of the first channel, which a prediction may have from its image."""
    return case_name(path).removesuffix("_0000")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
