"""A data set in nnU-Net's layout: a file for each channel, class indices, and its dataset.json."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_case
from sam2_3dmed.data.splits import Split
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.volume import Volume

NAME = "Dataset001_run"
ENDING = ".nii.gz"


def write_dataset(dataset: MedicalDataset, plan: Plan, folder: Path, progress: Progress | None = None) -> None:
    """Write the cases of a data set below `folder`, nnUNet_raw.

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
        "labels": {"background": 0, **{f"class {k}": k for k in range(1, plan.num_classes + 1)}},
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


def to_classes(label: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.integer]:
    """Class indices 0..K of a mask of the values of classes 1..K, ascending; all others become 0."""
    classes = np.searchsorted(values, label, side="right")
    known = np.isin(label, values)
    return np.where(known, classes, 0).astype(np.min_scalar_type(len(values)))


def to_values(classes: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.integer]:
    """The inverse of `to_classes`."""
    return np.array([0, *values], dtype=np.uint8 if max(values) < 256 else np.uint16)[classes]


def _write_case(case: Case, *, plan: Plan, root: Path) -> None:
    image, label = read_case(case, plan.label_values)
    assert label is not None  # a data set to train on has labelled cases only
    write_channels(image, root / "imagesTr", case.name)
    label.with_array(to_classes(label.array, plan.label_values)).write(root / "labelsTr" / f"{case.name}{ENDING}")
