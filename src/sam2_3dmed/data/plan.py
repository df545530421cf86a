"""The plan of a data set: proposed from its fingerprint, and a file that a person can edit."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from textwrap import indent
from typing import Any

import numpy as np
import yaml

from sam2_3dmed.config import ChannelPlan, Plan, parse
from sam2_3dmed.data.fingerprint import AXES, CaseFingerprint, Fingerprint, foreground_percentiles
from sam2_3dmed.errors import DataError
from sam2_3dmed.files.structured import read_yaml
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.slices import SlicingAxis

_LOW, _HIGH = 0.5, 99.5
_CT_NAMES = {"ct", "cta", "cbct", "cect", "ncct", "ldct"}
# Slab of D slices -> the fewest slices a structure must span to get it: the paper's 12 for organs, which hold two
# such slabs, its 6 for short structures.
_SLABS = {12: 24, 6: 6, 3: 0}
# The NSD tolerance in mm that the Decathlon uses, by the organ of each task (reading 11); 2 mm for all else.
_TOLERANCES_MM = {"pancreas": 5.0, "spleen": 3.0, "lung": 2.0}


def propose_plan(fingerprint: Fingerprint, names: Sequence[str] | None = None) -> Plan:
    """A plan for a data set, made from the named cases only: the training set, so that nothing leaks.

    Intensities: a channel whose name says CT gets fixed bounds, the 0.5 and 99.5 percentile of all foreground voxels;
    others the same percentiles of each volume (reading 9). Axis: `choose_slicing_axis` (reading 10). Slab: by the
    median number of slices that hold a class, where present, of the class that spans most: 12 from 24 slices on, 6
    from 6 on, else 3; never more than the median volume has.

    Raises:
        DataError: a CT without foreground or with a constant one.
    """
    cases = [case for case in fingerprint.cases if names is None or case.name in names]
    scheme = LabelScheme.of(fingerprint.labels)
    axis = choose_slicing_axis([case.spacing_mm for case in cases])
    words = " ".join([fingerprint.dataset, *fingerprint.labels.values()]).lower()
    return Plan(
        dataset=fingerprint.dataset,
        channels=tuple(_channel(fingerprint.dataset, cases, i, name) for i, name in enumerate(fingerprint.channels)),
        labels=dict(scheme),
        regions=dict(scheme.regions),
        ignore_label=scheme.ignore,
        slicing_axis=axis,
        slab_slices=_slab(cases, fingerprint.labels, axis),
        nsd_tolerance_mm=next((mm for organ, mm in _TOLERANCES_MM.items() if organ in words), 2.0),
    )


def choose_slicing_axis(spacings_mm: Sequence[tuple[float, float, float]]) -> SlicingAxis:
    """The slicing axis for cases of these spacings along R, A and S: axial, unless the slices of another are thicker.

    That is, unless another axis has the largest median spacing and the median over the cases of (largest / smallest
    spacing) exceeds 2.
    """
    spacings = np.asarray(spacings_mm, dtype=np.float64)
    along_r, along_a, along_s = np.median(spacings, axis=0).tolist()
    anisotropy = float(np.median(spacings.max(axis=1) / spacings.min(axis=1)))
    if anisotropy <= 2 or along_s >= max(along_r, along_a):
        return "axial"
    return "sagittal" if along_r > along_a else "coronal"


def _channel(dataset: str, cases: Sequence[CaseFingerprint], index: int, name: str) -> ChannelPlan:
    if _CT_NAMES.isdisjoint(re.split(r"[^a-z]+", name.lower())):
        return ChannelPlan(name=name, normalisation="percentiles", low=_LOW, high=_HIGH)
    try:
        low, high = foreground_percentiles(cases, index, (_LOW, _HIGH))
    except DataError as error:
        raise DataError(f"{dataset}: {error}") from None
    if low >= high:
        raise DataError(f"{dataset}: the foreground of channel {name!r} is constant ({low:g})")
    return ChannelPlan(name=name, normalisation="fixed", low=low, high=high)


def _slab(cases: Sequence[CaseFingerprint], labels: Iterable[int], axis: SlicingAxis) -> int:
    along = AXES.index(axis)
    spans = [
        median([case.classes[value].num_slices[along] for case in cases if value in case.classes] or [0])
        for value in labels
    ]
    slab = next(slices for slices, fewest in _SLABS.items() if max(spans) >= fewest)
    return min(slab, int(median(case.shape[along] for case in cases)))


def plan_yaml(plan: Plan) -> str:
    """A plan as YAML with a comment on every key."""
    content: dict[str, Any] = {"regions": {}, "ignore_label": None} | plan.model_dump()
    blocks = {key: _yaml(content[key]) for key in ("channels", "labels", "regions")}
    lines = {key: _yaml(value) for key, value in content.items() if key not in blocks}
    return _TEMPLATE.format(**lines, **{key: indent(text, "  ") for key, text in blocks.items()})


def write_plan_yaml(plan: Plan, path: Path) -> None:
    """Write a plan for `read_plan_yaml`. Raises DataError if the file cannot be written."""
    write_text(path, plan_yaml(plan))


def read_plan_yaml(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: unreadable, or one line per mistake that names the file and the key.
    """
    plan: Plan = parse(read_yaml(path), Plan, str(path))
    return plan


def _yaml(value: Any) -> str:
    """A value as YAML, quoted where it must be."""
    text = yaml.safe_dump(value, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


_TEMPLATE = """\
# The plan of a data set, proposed from its fingerprint. Edit it where you know better.

# The name of the data set.
dataset: {dataset}

# The channels of the images, in their order (at most 3). How intensities are brought to [0, 1]:
#   fixed        low and high are intensities, the same for every volume (CT, in Hounsfield units);
#   percentiles  low and high are percentiles of each volume (MR and others, whose scale is arbitrary).
# Intensities beyond low and high are clipped.
channels:
{channels}

# The classes: value in masks and label files, and name. 0 is the background and not listed. Ascending.
labels:
{labels}

# By the value in masks, all values in label files that belong to the class; {{}}: each class has its own value alone.
regions:
{regions}

# The value of voxels that nobody annotated, which count in no loss and no score; null: there are none.
ignore_label: {ignore_label}

# The direction in which a volume is cut into slices: sagittal, coronal or axial.
slicing_axis: {slicing_axis}

# D, how many neighbouring slices the network sees at once. The paper: 12 for organs, 6 for lung tumours.
slab_slices: {slab_slices}

# The distance in mm below which two surfaces agree, for the surface Dice (NSD) in the evaluation.
nsd_tolerance_mm: {nsd_tolerance_mm}
"""
