"""The slabs of pre-training: made-up anatomy with SAM2's own task, a prompt on some slices and a mask on all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from sam2_3dmed.data.cache import CachedCase, write_array
from sam2_3dmed.data.slabs import SampleKey
from sam2_3dmed.model.prompts import NEGATIVE, NOTHING, POSITIVE, Prompts, boxes_around
from sam2_3dmed.synthesis.volumes import SyntheticSlab, synthesise

NUM_POINTS = 5
"""Two corners of a box, and up to three points."""
_FEWEST_VOXELS, _LARGEST_SHARE = 40, 0.5
_PROMPTED = 0.15
"""Share of the object's further slices that have a prompt, too."""
_KINDS = {"box": 0.5, "points": 0.25, "mask": 0.25}
_VALIDATION_SLICES = 32


class PromptedSlabs(NamedTuple):
    """Slabs of equal length with an object and prompts for it; the first three as in `Slabs`."""

    slices: Tensor  # (B, D, 1, H, W)
    labels: Tensor  # (B, D, H, W), 1 for the object
    positions: Tensor  # (B, D)
    points: Tensor  # (B, D, 1, P, 3), see `Prompts`
    masks: Tensor  # (B, D, 1, H, W), NaN on slices without a mask as prompt

    @property
    def prompts(self) -> Prompts:
        """The prompts of the slices."""
        return Prompts(self.points, self.masks)


@dataclass(frozen=True)
class PromptedDataset(Dataset[PromptedSlabs]):
    """Slabs that are made when they are asked for; the same key gives the same slab in any process.

    The slabs of a batch have a prompt on one slice in common, with which a network with memory begins.

    Args:
        size: H = W in pixels.
    """

    slab_slices: int
    size: int
    batch_size: int
    seed: int

    def __getitem__(self, key: SampleKey) -> PromptedSlabs:
        """One slab, as a batch of one."""
        of_batch = np.random.default_rng([self.seed, key.epoch, key.number // self.batch_size, 1])
        first = int(of_batch.integers(self.slab_slices))
        for attempt in range(100):
            seed = [self.seed, *key, attempt, 2]  # not 0 at the end, which counts for nothing
            slab, rng = synthesise(seed, self.slab_slices, self.size), np.random.default_rng([*seed, 3])
            mask = choose_object(rng, slab, first)
            if mask is not None:
                points, masks = draw_prompts(rng, mask, first)
                image, positions = torch.from_numpy(slab.image)[:, None], torch.arange(self.slab_slices)
                return PromptedSlabs(*(x[None] for x in (image, torch.from_numpy(mask), positions, points, masks)))
        raise AssertionError("a hundred slabs without an object")


def collate(slabs: Sequence[PromptedSlabs]) -> list[PromptedSlabs]:
    """Slabs as one batch, in the form of `data.slabs.collate`."""
    return [PromptedSlabs(*(torch.cat(parts) for parts in zip(*slabs, strict=True)))]


def choose_object(rng: np.random.Generator, slab: SyntheticSlab, first: int) -> NDArray[np.uint8] | None:
    """A connected structure that slice `first` shows: (D, H, W) of 0 and 1; None if it shows none of a fair size."""
    shown, counts = np.unique(slab.labels[first], return_counts=True)
    for value in rng.permutation(shown[(shown > 0) & (counts >= 4)]):
        parts, _ = ndimage.label(slab.labels == value)
        there, sizes = np.unique(parts[first][parts[first] > 0], return_counts=True)
        part = parts == rng.choice(there, p=sizes / sizes.sum())
        if _FEWEST_VOXELS <= part.sum() <= _LARGEST_SHARE * part.size:
            return part.astype(np.uint8)
    return None


def draw_prompts(rng: np.random.Generator, mask: NDArray[np.uint8], first: int) -> tuple[Tensor, Tensor]:
    """Prompts for an object (D, H, W) on the slice `first` and on some of the others that show it.

    Returns:
        Points (D, 1, P, 3) and masks (D, 1, H, W) of `Prompts`.
    """
    points = torch.tensor([0.0, 0.0, NOTHING]).repeat(len(mask), 1, NUM_POINTS, 1)
    masks = torch.full((len(mask), 1, *mask.shape[1:]), torch.nan)
    shown = mask.any(axis=(1, 2)) & (rng.random(len(mask)) < _PROMPTED)
    shown[first] = True
    for index in np.flatnonzero(shown):
        kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
        if kind == "box":
            points[index, 0, :2] = _loose(rng, boxes_around(torch.from_numpy(mask[index].astype(np.int32)), [1])[0])
        elif kind == "points":
            points[index, 0, 2:] = _points(rng, mask[index])
        else:
            masks[index, 0] = torch.from_numpy(mask[index]).float()
    return points, masks


def _loose(rng: np.random.Generator, corners: Tensor) -> Tensor:
    """A box as a person draws it: each edge off by up to a tenth of the box's side, as in SAM's training."""
    sides = (corners[1, :2] - corners[0, :2]).numpy()
    corners[:, :2] += torch.from_numpy(rng.uniform(-0.1, 0.1, (2, 2)) * sides).float()
    corners[:, :2] = corners[:, :2].clamp(0, 1)
    return corners


def _points(rng: np.random.Generator, plane: NDArray[np.uint8]) -> Tensor:
    """A point inside, and up to two more, inside or outside: (3, 3)."""
    kinds = [POSITIVE, *rng.choice([POSITIVE, NEGATIVE, NOTHING], 2, p=[0.25, 0.35, 0.4])]
    points = np.zeros((len(kinds), 3), dtype=np.float32)
    for row, kind in enumerate(kinds):
        points[row, 2] = kind
        places = np.argwhere(plane == (kind == POSITIVE))
        if kind == NOTHING or not len(places):  # an object may fill the slice
            points[row, 2] = NOTHING
            continue
        y, x = (places[rng.integers(len(places))] + 0.5) / plane.shape
        points[row, :2] = x, y
    return torch.from_numpy(points)


def make_validation(folder: Path, count: int, size: int, seed: int) -> list[CachedCase]:
    """Volumes with an object each, written below `folder`, for which no training slab has the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = PromptedDataset(_VALIDATION_SLICES, size, 1, seed)
    cases = []
    for number in range(count):
        slab = dataset[SampleKey(2**31, number)]
        name = f"synthetic_{number:03d}"
        mask = slab.labels[0].numpy()
        write_array(slab.slices[0].numpy().astype(np.float16), folder / f"{name}.image.npy")
        write_array(mask, folder / f"{name}.label.npy")
        cases.append(CachedCase(name, folder, len(mask), {1: np.flatnonzero(mask.any(axis=(1, 2)))}))
    return cases
