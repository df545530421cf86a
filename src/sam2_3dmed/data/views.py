"""Augmented views: a training case under one set of drawn parameters, which stays for many epochs.

Features of a view can be kept, unlike features of slabs that are augmented anew each time.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sam2_3dmed.data.augment import Draw
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, ViewSlabs


class View(NamedTuple):
    """Names one view of a case: with the seed and the case's name it fixes every draw."""

    case: int
    """The number of the case among the training cases."""
    slot: int
    """One of the views that a case has at a time."""
    generation: int
    """How many views that slot has had before."""


class ViewDataset(Dataset[ViewSlabs]):
    """The slabs of `SlabDataset`, each in one of its case's views instead of an augmentation of its own.

    Case, slices and direction are drawn as there, also in epochs of single slices. The same key gives the same slab in
    any process.

    Args:
        num_views: of a case at a time.
        refresh: epochs that a view lives, None for all of them; the slots take turns.
    """

    def __init__(self, slabs: SlabDataset, *, num_views: int, refresh: int | None) -> None:
        self.cases = slabs.cases
        self.slab_slices = slabs.slab_slices
        self.augmentation = slabs.augmentation
        self._slabs = slabs
        self._num_views = num_views
        self._refresh = refresh
        self._numbers = {case.name: number for number, case in enumerate(self.cases)}
        self._means: dict[int, float] = {}

    def __getitem__(self, key: SampleKey) -> ViewSlabs:
        """One slab, as a batch of one."""
        rng = np.random.default_rng([self._slabs.seed, *key])
        case, start, length = self._slabs.draw(key, rng, self.slab_slices)
        slot = int(rng.integers(self._num_views))
        view = View(self._numbers[case.name], slot, self._generation(key.epoch, slot))
        stored = torch.from_numpy(case.label[start : start + length].astype(np.int32))
        labels = self.augmentation.labels(self._draw(view), stored)
        positions = torch.arange(start, start + length)
        if rng.random() < self.augmentation.config.reverse:
            labels, positions = labels.flip(0), positions.flip(0)
        return ViewSlabs(torch.tensor([view]), labels.unsqueeze(0), positions.unsqueeze(0))

    def slice(self, view: View, index: int, device: torch.device | str = "cpu") -> Tensor:
        """A slice of a view, (C, H, W) float32, augmented on `device` and left there."""
        draw, size = self._draw(view), self.augmentation.size
        stored = torch.from_numpy(self.cases[view.case].image[index].astype(np.float32)).unsqueeze(0).to(device)
        noise = None
        if draw.noise_std > 0:  # each slice has noise of its own
            shape = (1, stored.shape[1], size, size)
            noise = torch.from_numpy(self._rng(view, index).standard_normal(shape, dtype=np.float32)).to(device)
        return self.augmentation.image(draw, stored, noise, self._middle(view.case)).squeeze(0)

    def seeds(self, view: View) -> tuple[int, ...]:
        """The numbers that all draws of a view come from."""
        case = zlib.crc32(self.cases[view.case].name.encode())  # by name: other splits of the data have the same views
        return (self._slabs.seed, view.generation, view.slot, case)

    def num_generations(self, num_epochs: int) -> int:
        """How many views a case has in so many epochs."""
        return sum(self._generation(num_epochs - 1, slot) + 1 for slot in range(self._num_views))

    def _generation(self, epoch: int, slot: int) -> int:
        """0, 1, ... The slots change in turn, so that no epoch has to make all views anew."""
        if self._refresh is None:
            return 0
        return (epoch + slot * self._refresh // self._num_views) // self._refresh

    def _draw(self, view: View) -> Draw:
        return self.augmentation.draw(self._rng(view))[0]

    def _rng(self, view: View, *more: int) -> np.random.Generator:
        return np.random.default_rng([*self.seeds(view), *more, 2])  # not 0 at the end, which counts for nothing

    def _middle(self, case: int) -> float | None:
        """The mean of the whole case, about which contrast turns, since the slices at hand vary."""
        if self.augmentation.config.intensity == 0:
            return None
        if case not in self._means:
            self._means[case] = float(self.cases[case].image.mean(dtype=np.float32))
        return self._means[case]
