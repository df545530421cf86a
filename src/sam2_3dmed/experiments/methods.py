"""The rows of the paper's tables: which system or preset each one is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam2_3dmed.baselines.systems import OURS, SYSTEMS
from sam2_3dmed.config import ABLATIONS, BASELINES
from sam2_3dmed.errors import ConfigError, suggest

FULL = "full"
"""The whole method, which every other row is compared with."""


@dataclass(frozen=True)
class Method:
    """What a row of a table runs.

    title: its name in tables; system: a name of `train --system`; change: of the full recipe of ours, a name in
    ABLATIONS or BASELINES; from_scratch: it starts without pre-trained weights, whatever the others start from; caveat:
    what is unlike in it, for a note below each table.
    """

    title: str
    system: str = OURS
    change: str | None = None
    from_scratch: bool = False
    caveat: str = ""

    @property
    def of_ours(self) -> bool:
        """Whether it has our network and takes our recipe."""
        return self.system == OURS


_TITLES = {
    "without_pretraining": "w/o Pre-train",
    "without_srpp": "w/o SRPP",
    "without_boundary": "w/o BD",
    "without_boundary_fusion": "w/o BD-Fusion",
    "with_srpp_memory": "w/ SRPP memory",
    "slices_3": "3 slices",
    "slices_6": "6 slices",
    "slices_12": "12 slices",
    "boundary_weight_0.3": "lambda1=0.01, lambda2=0.3",
    "boundary_weight_0.5": "lambda1=0.01, lambda2=0.5",
    "srpp_weight_0.03": "lambda1=0.03, lambda2=0.1",
    "srpp_weight_0.05": "lambda1=0.05, lambda2=0.1",
    "sam2": "SAM2 (fine-tuned)",
    "medsam2": "MedSAM-2",
    "medsam2_boxes": "MedSAM-2, boxes from the reference",
}

_CAVEATS = {
    "medsam2_boxes": "is told by boxes from the reference, on every second slice, where the classes are",
    "universal": "learnt from this data set alone; the published figures are of one model for 14 data sets",
}

METHODS: Mapping[str, Method] = {
    FULL: Method("SAM2-3dMed"),
    **{
        change: Method(
            _TITLES.get(change, change.replace("_", " ")),
            change=change,
            from_scratch=change == "without_pretraining",
            caveat=_CAVEATS.get(change, ""),
        )
        for change in (*ABLATIONS, *BASELINES)
    },
    **{name: Method(system.title, system=name, caveat=_CAVEATS.get(name, "")) for name, system in SYSTEMS.items()},
}
"""All that can be run, by the name that `--methods` takes."""

_TABLE_1 = {
    "sam2": "SAM2 (fine-tuned)",
    "medsam2": "MedSAM-2",
    "nnunet": "nnU-Net",
    "universal": "Universal-Model",
    "nnformer": "nnFormer",
    "mednext_l": "MedNeXt",
    FULL: "SAM2-3dMed",
}


def _ablation(*changes: str) -> dict[str, str]:
    return {**{change: _TITLES[change] for change in changes}, FULL: "SAM2-3dMed"}


ROWS: Mapping[int, Mapping[str, str]] = {
    1: _TABLE_1,
    2: _ablation("without_pretraining", "without_srpp", "without_boundary"),
    3: _ablation("without_pretraining"),
    4: _ablation("without_srpp"),
    5: _ablation("without_boundary"),
    6: _ablation("without_boundary_fusion"),
    7: {change: _TITLES[change] for change in ("slices_3", "slices_6", "slices_12")},
    8: {
        **_ablation("boundary_weight_0.3", "boundary_weight_0.5", "srpp_weight_0.03", "srpp_weight_0.05"),
        FULL: "lambda1=0.01, lambda2=0.1",
    },
    9: _ablation("with_srpp_memory"),
}
"""For each table the methods of its rows, and what the paper calls them. The paper does not say which MedNeXt it ran:
this is the largest, with which its authors report their best results."""


def rows_of(table: int, methods: Sequence[str] | None) -> dict[str, str]:
    """The methods to run for a table, each with the title of its row.

    methods: a choice, and others beside those of the table; none: the table's.

    Raises:
        ConfigError: a method of which nothing is known.
    """
    rows = ROWS[table]
    chosen = list(dict.fromkeys(methods)) if methods else list(rows)
    for name in chosen:
        if name not in METHODS:
            raise ConfigError(f"no method {name!r}; {suggest(name, METHODS)}")
    return {name: rows[name] if name in rows else METHODS[name].title for name in chosen}
