"""Training, validation and test sets by whole volumes, the same for a seed on every machine."""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from sam2_3dmed.config import SplitConfig
from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import write_text

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The names of the cases of each part, ascending; no case is in two parts.

    Raises:
        DataError: a part is empty, or a case occurs twice.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        empty = [part for part in _PARTS if not getattr(self, part)]
        if empty:
            raise DataError(f"the split has no cases for {' and '.join(empty)}")
        _require_distinct([*self.train, *self.validation, *self.test])

    def require_known(self, names: Collection[str]) -> None:
        """Raise DataError unless a data set of the cases `names` has every case of the split."""
        missing = sorted({*self.train, *self.validation, *self.test} - set(names))
        if missing:
            raise DataError(f"the data set lacks {len(missing)} cases of the split: {_shortened(missing)}")

    def write(self, path: Path) -> None:
        """Write `split.json`. Raises DataError if it cannot be written."""
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Split":
        """Read `split.json`.

        Raises:
            DataError: unreadable, other keys than train, validation and test, not lists of names, or an
                invalid split.
        """
        content = read_object(path)
        if set(content) != set(_PARTS):
            raise DataError(f"{path}: expected the keys {', '.join(_PARTS)} and no others")
        for part, names in content.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{path}: {part}: expected a list of case names")
        try:
            return cls(*(tuple(sorted(content[part])) for part in _PARTS))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def split_cases(
    names: Sequence[str],
    options: SplitConfig,
    fold: tuple[int, int] | None = None,
    *,
    foreground: Collection[str] | None = None,
) -> Split:
    """The split that a recipe asks for. It depends on the names and the seed, not on the order of the names.

    The test set is a random part of all cases; in cross-validation every case is in the test set of exactly one fold,
    and these sets differ in size by at most one. Validation is a part of the other cases (reading 13). Parts are
    rounded to whole cases, at least one. With `training_cases`, fewer training cases are among those of more.

    Args:
        fold: (i, n), fold i of n, 1 <= i <= n.
        foreground: the cases whose label holds a class. Training and validation then have equal shares of them, and at
            least one each if there are two. The test set does not depend on it.

    Raises:
        DataError: a name occurs twice, fewer than 2 folds, too few cases to train, select and test, or a name in
            `training_cases` that is none of the training cases.
    """
    _require_distinct(names)
    ranked = _shuffled(names, str(options.seed))
    if fold is None:
        num_test = _share(len(names), options.test_fraction)
        num_validation = _share(len(names) - num_test, options.validation_fraction)
        if len(names) - num_test - num_validation < 1:
            raise DataError(
                f"{len(names)} labelled cases are too few to split: {num_test} for test and {num_validation} for "
                "validation leave none to train on"
            )
        test, rest = ranked[:num_test], ranked[num_test:]
    else:
        number, count = fold
        if count < 2:
            raise DataError(f"cross-validation needs at least 2 folds, not {count}")
        num_rest = len(names) - math.ceil(len(names) / count)
        if len(names) < count or num_rest <= _share(num_rest, options.validation_fraction):
            raise DataError(
                f"{len(names)} labelled cases are too few for {count} folds: each needs at least one case to "
                "train on, one for validation and one for test"
            )
        test = ranked[number - 1 :: count]
        rest = _shuffled(set(names) - set(test), f"{options.seed}/fold {number - 1}")
    count = _share(len(rest), options.validation_fraction)
    validation = rest[:count] if foreground is None else _stratified(rest, count, foreground)
    training = _few(options, [name for name in rest if name not in set(validation)], foreground)
    return Split(*(tuple(sorted(part)) for part in (training, validation, test)))


def _few(options: SplitConfig, training: list[str], foreground: Collection[str] | None) -> list[str]:
    """The training cases that are named, or at most so many of them, with their share of foreground."""
    count = options.training_cases
    if isinstance(count, tuple):
        if others := sorted(set(count) - set(training)):
            raise DataError(f"split.training_cases: {shown(others[0])} is not among the {len(training)} training cases")
        return [name for name in training if name in count]
    if count is None or count >= len(training):
        return training
    return _stratified(training, count, foreground or training, left=0)


def _stratified(ranked: Sequence[str], count: int, foreground: Collection[str], *, left: int = 1) -> list[str]:
    """The first cases with foreground and the first without it, `count` together, in the proportion of all.

    left: so many with foreground are not among them.
    """
    holding = [name for name in ranked if name in foreground]
    empty = [name for name in ranked if name not in foreground]
    wanted = min(_share(len(holding), count / len(ranked)), count, len(holding) - left)
    wanted = max(wanted, count - len(empty), 0)
    return [*holding[:wanted], *empty[: count - wanted]]


def _shuffled(names: Collection[str], salt: str) -> list[str]:
    """The names in the order of a hash, which stays the same where a random generator may change with its library."""
    return sorted(names, key=lambda name: sha256(f"{salt}/{name}".encode()).digest())


def _share(count: int, fraction: float) -> int:
    """`fraction` of `count`, halves rounded up, at least 1."""
    return max(1, math.floor(round(count * fraction, 6) + 0.5))


def _require_distinct(names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"a case may occur once in a split: {_shortened(twice)}")


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
