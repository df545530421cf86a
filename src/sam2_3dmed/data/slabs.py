"""Training slabs: D consecutive slices of a case, drawn and augmented from a seed (readings 5, 6 and 14).

A view is a case under one set of drawn parameters, which stays for many epochs: its features can be kept, unlike those
of slabs that are augmented anew each time.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sam2_3dmed.data.augment import Draw, SlabAugmentation, strong
from sam2_3dmed.data.cache import CachedCase


class SampleKey(NamedTuple):
    """Names one slab of a run: with the seed it fixes every draw."""

    epoch: int
    number: int


class Slabs(NamedTuple):
    """Slabs of equal length as the network takes them."""

    slices: Tensor  # (B, D, C, H, W) float32 in [0, 1], C as in the volumes
    labels: Tensor  # (B, D, H, W) class indices, 0 background, and K + 1 where there is an ignore label
    positions: Tensor  # (B, D), each slice's index in its volume; descending where the slab is fed in reverse
    weak: Tensor | None = None  # As `slices`, moved alike, but of the intensities of the scan; for a teacher

    def each(self, change: Callable[[Tensor], Tensor]) -> "Slabs":
        """Apply the same change to every tensor."""
        weak = None if self.weak is None else change(self.weak)
        return Slabs(change(self.slices), change(self.labels), change(self.positions), weak)

    def single_slices(self) -> "Slabs":
        """Every slice as a slab of its own: (B D, 1, ...)."""
        return self.each(lambda part: part.flatten(0, 1).unsqueeze(1))


class View(NamedTuple):
    """Names one view of a case: with the seed and the case's name it fixes every draw."""

    case: int  # its number among the training cases
    slot: int  # one of the views that a case has at a time
    generation: int  # how many views that slot has had before


class ViewSlabs(NamedTuple):
    """Slabs of views, without their slices, whose features are kept elsewhere; `labels`, `positions` as in `Slabs`."""

    views: Tensor  # (B, 3), each slab's `View`
    labels: Tensor
    positions: Tensor

    def single_slices(self) -> "ViewSlabs":
        """Every slice as a slab of its own."""
        labels, positions = (part.flatten(0, 1).unsqueeze(1) for part in (self.labels, self.positions))
        return ViewSlabs(self.views.repeat_interleave(self.positions.shape[1], dim=0), labels, positions)


@dataclass(eq=False)
class SlabDataset(Dataset[Slabs]):
    """Slabs of the training cases; the same key gives the same slab in any process.

    A volume with fewer than D slices gives a shorter slab, never padding.

    Args:
        foreground_fraction: share of the slabs that are centred on a foreground slice. A class is drawn first, each
            with the same chance, then a case that has it, then a slice that holds it, so rare classes come as often as
            common ones. The other slabs start anywhere in the next case of a shuffled round, or lie around a slice that
            is annotated in part.
        single_slice_epochs: so many epochs come first whose slabs hold D unrelated slices, each drawn and augmented on
            its own. For training that takes every slice alone, such a batch is more varied.
        unlabelled: cases without labels, of which `unlabelled_fraction` of the slabs are. Their intensities are changed
            more strongly (`strong`).
        weak_views: slabs have `weak`.
    """

    cases: Sequence[CachedCase]
    slab_slices: int
    augmentation: SlabAugmentation
    foreground_fraction: float
    seed: int
    single_slice_epochs: int = 0
    unlabelled: Sequence[CachedCase] = ()
    unlabelled_fraction: float = 0.0
    weak_views: bool = False

    def __post_init__(self) -> None:
        self._strong = strong(self.augmentation)
        classes = {k for case in self.cases for k, slices in case.class_slices.items() if len(slices)}
        self.cases_with = {k: [c for c in self.cases if len(c.class_slices[k])] for k in sorted(classes)}

    def __getitem__(self, key: SampleKey) -> Slabs:
        """One slab, as a batch of one."""
        rng = np.random.default_rng([self.seed, *key])
        if key.epoch >= self.single_slice_epochs:
            return self._slab(key, rng, self.slab_slices)
        first = key.number * self.slab_slices
        slices = [self._slab(SampleKey(key.epoch, first + n), rng, 1) for n in range(self.slab_slices)]
        return joined(slices, dim=1)

    def _slab(self, key: SampleKey, rng: np.random.Generator, num_slices: int) -> Slabs:
        case, start, length = self.draw(key, rng, num_slices)
        slab = slice(start, start + length)
        augmentation = (
            self.augmentation if case.annotated_slices is None or len(case.annotated_slices) else self._strong
        )
        stored = (
            torch.from_numpy(case.image[slab].astype(np.float32)),
            torch.from_numpy(case.label[slab].astype(np.int32)),
        )
        weak = None
        if self.weak_views:
            image, labels, weak = augmentation.views(*stored, rng)
        else:
            image, labels = augmentation(*stored, rng)
        found = Slabs(image, labels, torch.arange(start, start + length), weak)
        if rng.random() < self.augmentation.config.reverse:
            found = found.each(lambda part: part.flip(0))
        return found.each(lambda part: part.unsqueeze(0))

    def draw(self, key: SampleKey, rng: np.random.Generator, num_slices: int) -> tuple[CachedCase, int, int]:
        """The case of a slab, its first slice, and its length: `num_slices`, or all slices of a shorter case."""
        if self.unlabelled and rng.random() < self.unlabelled_fraction:
            case = self.unlabelled[int(rng.integers(len(self.unlabelled)))]
            length = min(num_slices, case.num_slices)
            return case, int(rng.integers(case.num_slices - length + 1)), length
        if self.cases_with and rng.random() < self.foreground_fraction:
            k = list(self.cases_with)[rng.integers(len(self.cases_with))]
            case = self.cases_with[k][rng.integers(len(self.cases_with[k]))]
            return _around(case, int(rng.choice(case.class_slices[k])), num_slices)
        turn, place = divmod(key.number, len(self.cases))
        order = np.random.default_rng([self.seed, key.epoch, turn, 1]).permutation(len(self.cases))
        case = self.cases[order[place]]
        if case.annotated_slices is not None and len(case.annotated_slices):
            return _around(case, int(rng.choice(case.annotated_slices)), num_slices)
        length = min(num_slices, case.num_slices)
        return case, int(rng.integers(case.num_slices - length + 1)), length


def _around(case: CachedCase, centre: int, num_slices: int) -> tuple[CachedCase, int, int]:
    """The slab about a slice, as `SlabDataset.draw` returns it."""
    length = min(num_slices, case.num_slices)
    return case, int(np.clip(centre - length // 2, 0, case.num_slices - length)), length


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


AnySlabs = TypeVar("AnySlabs", Slabs, ViewSlabs)


def joined(slabs: Sequence[AnySlabs], dim: int = 0) -> AnySlabs:
    """Several as one, along a dimension."""
    columns: list[Any] = [None if c[0] is None else torch.cat(c, dim) for c in zip(*slabs, strict=True)]
    return type(slabs[0])(*columns)


def collate(slabs: Sequence[AnySlabs]) -> list[AnySlabs]:
    """Slabs of equal length become a batch; a shorter one, from a small volume, a batch of its own."""
    lengths = sorted({w.positions.shape[1] for w in slabs})
    groups = [[w for w in slabs if w.positions.shape[1] == length] for length in lengths]
    return [joined(group) for group in groups]
