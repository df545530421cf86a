"""A data set in nnU-Net's layout: a file for each channel, class indices, and its dataset.json."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_case
from sam2_3dmed.data.splits import Split
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume

NAME = "Dataset001_run"
ENDING = ".nii.gz"


def write_dataset(dataset: MedicalDataset, plan: Plan, folder: Path, progress: Progress | None = None) -> None:
    """Write the cases of a data set below `folder`, nnUNet_raw, with labels as `LabelScheme.indexed` has them.

    Volumes keep their grid and their order of axes, which nnU-Net relies on. A channel whose intensity bounds our plan
    fixes is called CT, which decides how nnU-Net normalises it.
    """
    root = folder / NAME
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True, exist_ok=True)
    map_cases(partial(_write_case, plan=plan, root=root), dataset.cases, progress=progress)
    content = {
        "channel_names": {
            str(c): "CT" if channel.normalisation == "fixed" else f"channel {c}"
            for c, channel in enumerate(plan.channels)
        },
        **_labels(plan.scheme.indexed),
        "numTraining": len(dataset.cases),
        "file_ending": ENDING,
    }
    write_text(root / "dataset.json", json.dumps(content, indent=1) + "\n")


def write_split(split: Split, folder: Path) -> None:
    """Write our split as the only fold. folder: nnUNet_preprocessed."""
    content = [{"train": list(split.train), "val": list(split.validation)}]
    write_text(folder / NAME / "splits_final.json", json.dumps(content, indent=1) + "\n")


def write_channels(volume: Volume, folder: Path, name: str) -> list[Path]:
    """Write NAME_0000.nii.gz and so on. Raises: VolumeError if they cannot be written."""
    channels = [volume.array] if volume.array.ndim == 3 else np.moveaxis(volume.array, -1, 0)
    paths = [folder / f"{name}_{number:04d}{ENDING}" for number in range(len(channels))]
    for path, channel in zip(paths, channels, strict=True):
        Volume(channel, volume.affine).write(path)
    return paths


def to_values(indices: NDArray[np.integer], scheme: LabelScheme) -> NDArray[np.integer]:
    """A mask of `LabelScheme.indexed` in the values of the label files."""
    values = np.array([0, *scheme.file_values])
    return values.astype(np.min_scalar_type(max(scheme.file_values)))[indices]


def _write_case(case: Case, *, plan: Plan, root: Path) -> None:
    image, label = read_case(case, plan.scheme.allowed)
    assert label is not None  # a data set to train on has labelled cases only
    write_channels(image, root / "imagesTr", case.name)
    label.with_array(plan.scheme.to_indices(label.array)).write(root / "labelsTr" / f"{case.name}{ENDING}")


def _labels(scheme: LabelScheme) -> dict[str, Any]:
    """nnU-Net's "labels", and for regions the values that its masks are painted with."""
    named: dict[str, int | list[int]] = {"background": 0}
    for k, value in enumerate(scheme, start=1):
        named[f"class {k}"] = list(scheme.members(value)) if scheme.regions else value
    if scheme.ignore is not None:
        named["ignore"] = scheme.ignore
    return {"labels": named, **({"regions_class_order": list(scheme)} if scheme.regions else {})}
