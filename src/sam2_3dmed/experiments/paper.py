"""What the paper reports: its Tables 1-9, and the data sets and slab lengths they were made with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sam2_3dmed.errors import ConfigError

METRICS = ("dice", "iou", "hd95", "nsd")
"""Of every cell, as the paper orders them; it states neither HD95's unit nor NSD's tolerance."""


@dataclass(frozen=True)
class PaperTask:
    """A data set of the paper. folder: in the Decathlon; slab_slices: D (appendix B)."""

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
        """Those that the table has a column for."""
        return tuple(dict.fromkeys(task for row in self.values.values() for task in row))


@cache
def paper_table(number: int) -> PaperTable:
    """One of the tables.

    Raises:
        ConfigError: the paper has no such table.
    """
    content = json.loads((files("sam2_3dmed.experiments") / "paper_tables.json").read_text(encoding="utf-8"))
    tables = content["tables"]
    if str(number) not in tables:
        raise ConfigError(f"the paper has no table {number}; it has {', '.join(tables)}")
    table = tables[str(number)]
    return PaperTable(number, table["title"], table["rows"])
