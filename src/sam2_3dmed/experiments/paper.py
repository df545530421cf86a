"""Tables 1 to 9 of the paper as printed, and what we run for each of their rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sam2_3dmed.config import ABLATIONS, BASELINES
from sam2_3dmed.errors import ConfigError, suggest
from sam2_3dmed.run.systems import OURS, find_system, system_names

METRICS = ("dice", "iou", "hd95", "nsd")
"""The metrics of every cell in the paper's order. The paper states neither HD95's unit nor NSD's tolerance."""
TASKS = {"lung": "Task06_Lung", "spleen": "Task09_Spleen", "pancreas": "Task07_Pancreas"}
"""The paper's data sets, with their folders in the Decathlon."""
SLAB_SLICES = {"lung": 6, "spleen": 12, "pancreas": 12}
"""D (appendix B)."""
FULL = "full"
"""The complete method, which every other row is compared with."""

_METHODS = {
    "SAM2 (fine-tuned)": "sam2",
    "MedSAM-2": "medsam2",
    "nnU-Net": "nnunet",
    "Universal-Model": "universal",
    "nnFormer": "nnformer",
    "MedNeXt": "mednext_l",  # the paper names no size; its authors report their best results with the largest
    "w/o Pre-train": "without_pretraining",
    "w/o SRPP": "without_srpp",
    "w/o BD": "without_boundary",
    "w/o BD-Fusion": "without_boundary_fusion",
    "w/ SRPP memory": "with_srpp_memory",
    "3 slices": "slices_3",
    "6 slices": "slices_6",
    "12 slices": "slices_12",
    "lambda1=0.01, lambda2=0.1": FULL,
    "lambda1=0.01, lambda2=0.3": "boundary_weight_0.3",
    "lambda1=0.01, lambda2=0.5": "boundary_weight_0.5",
    "lambda1=0.03, lambda2=0.1": "srpp_weight_0.03",
    "lambda1=0.05, lambda2=0.1": "srpp_weight_0.05",
    "SAM2-3dMed": FULL,  # below its other name, so that this one is its title in other tables
}
"""The paper's name of a row -> the method that we run for it."""
_TITLES = {"medsam2_boxes": "MedSAM-2, boxes from the reference", **{name: row for row, name in _METHODS.items()}}
_CAVEATS = {
    "medsam2_boxes": "gets boxes from the reference on every second slice that has a class",
    "universal": "learnt from this data set alone; the published figures are of one model for 14 data sets",
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
    """Load one of the tables. Raises ConfigError if the paper has no such table."""
    tables = json.loads((files("sam2_3dmed.experiments") / "paper_tables.json").read_text(encoding="utf-8"))["tables"]
    if str(number) not in tables:
        raise ConfigError(f"the paper has no table {number}; it has {', '.join(tables)}")
    table = tables[str(number)]
    return PaperTable(number, table["title"], table["rows"])


@dataclass(frozen=True)
class Method:
    """What a row of a table runs.

    Attributes:
        change: What it changes in our recipe, a name in ABLATIONS or BASELINES.
        caveat: How it differs from the published system, for a note below each table.
    """

    title: str
    system: str = OURS
    change: str | None = None
    caveat: str = ""


def method_names() -> list[str]:
    """Every method that can be run, for `--methods`."""
    return [FULL, *ABLATIONS, *BASELINES, *(name for name in system_names() if name != OURS)]


def find_method(name: str) -> Method:
    """The method of this name. Raises ConfigError if there is none, or its system cannot be loaded."""
    if name not in method_names():
        raise ConfigError(f"no method {name!r}; {suggest(name, method_names())}")
    caveat = _CAVEATS.get(name, "")
    if name in (FULL, *ABLATIONS, *BASELINES):
        change = None if name == FULL else name
        return Method(_TITLES.get(name, name.replace("_", " ")), change=change, caveat=caveat)
    return Method(find_system(name).title, name, caveat=caveat)


def select_rows(table: int, methods: Sequence[str] = ()) -> dict[str, str]:
    """The methods to run for a table, its own without any others: method -> title of its row."""
    rows = {_METHODS[title]: title for title in paper_table(table).values}
    return {name: rows.get(name, find_method(name).title) for name in methods or rows}
