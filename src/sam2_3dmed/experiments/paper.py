"""Tables 1 to 9 of the paper as printed, with the data sets and slab lengths behind them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sam2_3dmed.errors import ConfigError

METRICS = ("dice", "iou", "hd95", "nsd")
"""The metrics of every cell in the paper's order. The paper states neither HD95's unit nor NSD's tolerance."""


@dataclass(frozen=True)
class PaperTask:
    """A data set of the paper: its folder in the Decathlon, and D (appendix B)."""

    folder: str
    slab_slices: int


TASKS: Mapping[str, PaperTask] = {
    "lung": PaperTask("Task06_Lung", 6),
    "spleen": PaperTask("Task09_Spleen", 12),
    "pancreas": PaperTask("Task07_Pancreas", 12),
}


@dataclass(frozen=True)
class PaperTable:
    """A table as printed. values: row -> task -> metric -> number."""

    number: int
    title: str
    values: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a column."""
        return tuple(dict.fromkeys(task for row in self.values.values() for task in row))


@cache
def paper_table(number: int) -> PaperTable:
    """Load one of the tables.

    Raises:
        ConfigError: the paper has no such table.
    """
    content = json.loads((files("sam2_3dmed.experiments") / "paper_tables.json").read_text(encoding="utf-8"))
    tables = content["tables"]
    if str(number) not in tables:
        raise ConfigError(f"the paper has no table {number}; it has {', '.join(tables)}")
    table = tables[str(number)]
    return PaperTable(number, table["title"], table["rows"])
