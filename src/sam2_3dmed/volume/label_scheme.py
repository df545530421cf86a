"""The classes of a data set in its label files: single values, regions of several values, and what nobody annotated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError, shown

_MAX_LABEL = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True, eq=False)
class LabelScheme(Mapping[int, str]):
    """The name of each class by its value in a mask, as a mapping; nnU-Net's rules (its LabelManager) hold.

    Args:
        names: the classes. A mask is painted in this order, so that a later region covers an earlier one.
        regions: for a class that consists of other values in the label files than its own, all of these.
        ignore: the value of voxels that nobody annotated; they count nowhere.
    """

    names: Mapping[int, str]
    regions: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None

    @classmethod
    def of(cls, labels: Mapping[int, str]) -> "LabelScheme":
        """Names by value as a scheme; a scheme as it is."""
        return labels if isinstance(labels, cls) else cls(labels)

    @classmethod
    def numbered(cls, count: int) -> "LabelScheme":
        """Classes 1, 2, ... without names of their own."""
        return cls({number: f"class {number}" for number in range(1, count + 1)})

    def __getitem__(self, value: int) -> str:
        return self.names[value]

    def __iter__(self) -> Iterator[int]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def members(self, value: int) -> tuple[int, ...]:
        """The values in a label file that belong to the class."""
        return self.regions.get(value, (value,))

    def holds(self, array: NDArray[Any], value: int) -> NDArray[np.bool_]:
        """Where a label or a mask has the class."""
        members = self.members(value)
        return np.asarray(array == members[0] if len(members) == 1 else np.isin(array, members))

    def numbers(self, array: NDArray[Any]) -> NDArray[np.unsignedinteger]:
        """Class numbers 1..K of a label or a mask, 0 elsewhere; a later region covers an earlier one."""
        numbers = np.zeros(array.shape, dtype=np.min_scalar_type(len(self)))
        for number, value in enumerate(self, start=1):
            numbers[self.holds(array, value)] = number
        return numbers

    def beneath(self, value: int) -> int:
        """What a mask has where it loses a class: the last earlier region around it, else the background."""
        order = list(self)
        around = [other for other in order[: order.index(value)] if value in self.members(other)]
        return around[-1] if around else 0

    @property
    def parts(self) -> dict[int, str]:
        """The name of what a mask shows under each value: of a region, what no later one covers."""
        order = list(self)
        named = {}
        for index, value in enumerate(order):
            inside = [other for other in order[index + 1 :] if other in self.members(value)]
            outermost = [self[one] for one in inside if self.beneath(one) == value]
            named[value] = f"{self[value]} without {' and '.join(outermost)}" if outermost else self[value]
        return named

    @cached_property
    def file_values(self) -> tuple[int, ...]:
        """All values of classes in the label files, ascending."""
        return tuple(sorted({member for value in self for member in self.members(value)}))

    @property
    def allowed(self) -> tuple[int, ...]:
        """All values that a label file may hold besides 0."""
        return self.file_values if self.ignore is None else (*self.file_values, self.ignore)

    @cached_property
    def indexed(self) -> "LabelScheme":
        """The same classes in prepared labels, where the file values are 1, 2, ... and the value to ignore is next."""
        index = {value: number for number, value in enumerate(self.file_values, start=1)}
        return LabelScheme(
            {index[value]: name for value, name in self.items()},
            {index[value]: tuple(index[member] for member in members) for value, members in self.regions.items()},
            None if self.ignore is None else len(index) + 1,
        )

    def to_indices(self, label: NDArray[Any]) -> NDArray[np.unsignedinteger]:
        """A label of allowed values as the values of `indexed`."""
        numbers = np.zeros(max(self.allowed) + 1, dtype=np.min_scalar_type(len(self.allowed)))
        numbers[list(self.allowed)] = np.arange(1, len(self.allowed) + 1)
        return np.asarray(numbers[label])

    def annotated(self, truth: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Where a label has another value than the one to ignore; None if all voxels have."""
        return None if self.ignore is None else truth != self.ignore

    def cut(self, truth: NDArray[Any], *masks: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """A label and masks on its grid, all with background where the label is to be ignored."""
        known = self.annotated(truth)
        if known is None or known.all():
            return truth, *masks
        return tuple(np.where(known, array, array.dtype.type(0)) for array in (truth, *masks))


def parse_labels(content: Mapping[str, Any]) -> LabelScheme:
    """The classes in a dataset.json, from {"1": "liver"} (MSD) or {"liver": 1, "whole": [1, 2], "ignore": 3} (nnU-Net).

    Without regions, classes ascend. With regions they have the order and the values of "regions_class_order".

    Raises:
        DataError: what is wrong with "labels" or "regions_class_order"; the caller names the file.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError('"labels" must name the classes, such as {"background": 0, "liver": 1}')
    names: dict[tuple[int, ...], str] = {}
    for values, name in (_entry(key, item) for key, item in labels.items()):
        if values in names:
            twice = values[0] if len(values) == 1 else list(values)
            raise DataError(f'"labels" gives the value {shown(twice)} twice ({shown(names[values])} and {shown(name)})')
        names[values] = name
    ignored = [values for values, name in names.items() if name.strip().lower() == "ignore" and values != (0,)]
    ignore = _ignore_value(names, ignored[0]) if ignored else None
    names.pop((0,), None)
    if not names:
        raise DataError('"labels" names no class besides the background')
    if len(set(names.values())) < len(names):
        raise DataError(f'"labels" gives the same name to two values: {shown(sorted(names.values()))}')
    if all(len(values) == 1 for values in names):
        return LabelScheme(dict(sorted((values[0], name) for values, name in names.items())), ignore=ignore)
    return _with_regions(names, content.get("regions_class_order"), ignore)


def _ignore_value(names: dict[tuple[int, ...], str], values: tuple[int, ...]) -> int:
    """The value to ignore, which is taken out of the names."""
    del names[values]
    if len(values) > 1 or any(values[0] in others for others in names):
        raise DataError('"labels" must give "ignore" one value that no class has')
    return values[0]


def _with_regions(names: Mapping[tuple[int, ...], str], order: Any, ignore: int | None) -> LabelScheme:
    written = [whole_number(value) for value in order] if isinstance(order, list) else []
    known = {value for values in names for value in values}
    if len(written) != len(names) or len(set(written)) < len(written) or not known.issuperset(written):
        raise DataError(
            'region-based labels need "regions_class_order": for each region in the order of "labels" the value that a '
            f"mask has for it, all different, of {', '.join(map(str, sorted(known)))}"
        )
    regions = {value: values for value, values in zip(written, names, strict=True) if value is not None}
    return LabelScheme({value: names[values] for value, values in regions.items()}, regions, ignore)


def _entry(key: Any, item: Any) -> tuple[tuple[int, ...], str]:
    """The values and the name of an entry of "labels"."""
    parts = item if isinstance(item, list) else [item]
    numbers = [whole_number(part) for part in parts]
    as_key = whole_number(key)
    values: tuple[int, ...]
    if as_key is not None and not isinstance(item, list) and (isinstance(item, str) or numbers[0] is None):
        values, name = (as_key,), str(item)
    elif parts and None not in numbers:
        values, name = tuple(sorted({number for number in numbers if number is not None})), str(key)
    else:
        raise DataError(f'"labels" must pair names with whole numbers, not {shown(key)} with {shown(item)}')
    if not 0 <= values[0] <= values[-1] <= _MAX_LABEL:
        wrong = values[0] if len(values) == 1 else list(values)
        raise DataError(f"label {shown(name)} has the value {shown(wrong)}; values lie in 0 to {_MAX_LABEL}")
    if len(values) > 1 and values[0] == 0:
        raise DataError(f"region {shown(name)} holds 0, which is the background")
    return values, name


def whole_number(item: Any) -> int | None:
    """A whole number from JSON, also as text or as 1.0; None for anything else."""
    if isinstance(item, bool) or not isinstance(item, int | float | str):
        return None
    try:
        number = float(item)
        return int(number) if number.is_integer() else None
    except (ValueError, OverflowError):
        return None
