"""Training slabs: D consecutive slices of a case, drawn and augmented from a seed (readings 5, 6 and 14)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase, CaseCache


class SampleKey(NamedTuple):
    """Names one slab of a run: with the seed it fixes every draw."""

    epoch: int
    number: int


class Slabs(NamedTuple):
    """Slabs of equal length as the network takes them."""

    slices: Tensor
    """(B, D, C, H, W) float32 in [0, 1], C as in the volumes."""
    labels: Tensor
    """(B, D, H, W) class indices, 0 background."""
    positions: Tensor
    """(B, D), each slice's index in its volume; descending where the slab is fed in reverse."""

    def single_slices(self) -> "Slabs":
        """Every slice as a slab of its own: (B D, 1, ...)."""
        return Slabs(*(part.flatten(0, 1).unsqueeze(1) for part in self))


class ViewSlabs(NamedTuple):
    """Slabs of views, without their slices, whose features are kept elsewhere; `labels`, `positions` as in `Slabs`."""

    views: Tensor
    """(B, 3), each slab's `data.views.View`."""
    labels: Tensor
    positions: Tensor

    def single_slices(self) -> "ViewSlabs":
        """Every slice as a slab of its own."""
        labels, positions = (part.flatten(0, 1).unsqueeze(1) for part in (self.labels, self.positions))
        return ViewSlabs(self.views.repeat_interleave(self.positions.shape[1], dim=0), labels, positions)


class SlabDataset(Dataset[Slabs]):
    """Slabs of the training cases; the same key gives the same slab in any process.

    A volume with fewer than D slices gives a shorter slab, never padding.

    Args:
        foreground_fraction: share of the slabs that are centred on a foreground slice. A class is drawn first, each
            with the same chance, then a case that has it, then a slice that holds it, so rare classes come as often as
            common ones. The other slabs start anywhere in the next case of a shuffled round.
        single_slice_epochs: so many epochs come first whose slabs hold D unrelated slices, each drawn and augmented on
            its own. For training that takes every slice alone, such a batch is more varied.
    """

    def __init__(
        self,
        cache: CaseCache,
        *,
        slab_slices: int,
        augmentation: SlabAugmentation,
        foreground_fraction: float,
        seed: int,
        single_slice_epochs: int = 0,
    ) -> None:
        self.cases = list(cache)
        self.slab_slices = slab_slices
        self.augmentation = augmentation
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self.single_slice_epochs = single_slice_epochs
        classes = {k for case in self.cases for k, slices in case.class_slices.items() if len(slices)}
        self.cases_with = {k: [c for c in self.cases if len(c.class_slices[k])] for k in sorted(classes)}

    def __getitem__(self, key: SampleKey) -> Slabs:
        """One slab, as a batch of one."""
        rng = np.random.default_rng([self.seed, *key])
        if key.epoch >= self.single_slice_epochs:
            return self._slab(key, rng, self.slab_slices)
        first = key.number * self.slab_slices
        slices = [self._slab(SampleKey(key.epoch, first + n), rng, 1) for n in range(self.slab_slices)]
        return Slabs(*(torch.cat(parts, dim=1) for parts in zip(*slices, strict=True)))

    def _slab(self, key: SampleKey, rng: np.random.Generator, num_slices: int) -> Slabs:
        case, start, length = self.draw(key, rng, num_slices)
        slab = slice(start, start + length)
        image, labels = self.augmentation(
            torch.from_numpy(case.image[slab].astype(np.float32)),
            torch.from_numpy(case.label[slab].astype(np.int32)),
            rng,
        )
        positions = torch.arange(start, start + length)
        if rng.random() < self.augmentation.config.reverse:
            image, labels, positions = image.flip(0), labels.flip(0), positions.flip(0)
        return Slabs(image.unsqueeze(0), labels.unsqueeze(0), positions.unsqueeze(0))

    def draw(self, key: SampleKey, rng: np.random.Generator, num_slices: int) -> tuple[CachedCase, int, int]:
        """The case of a slab, its first slice, and its length: `num_slices`, or all slices of a shorter case."""
        if self.cases_with and rng.random() < self.foreground_fraction:
            k = list(self.cases_with)[rng.integers(len(self.cases_with))]
            case = self.cases_with[k][rng.integers(len(self.cases_with[k]))]
            centre = int(rng.choice(case.class_slices[k]))
            length = min(num_slices, case.num_slices)
            return case, int(np.clip(centre - length // 2, 0, case.num_slices - length)), length
        turn, place = divmod(key.number, len(self.cases))
        order = np.random.default_rng([self.seed, key.epoch, turn, 1]).permutation(len(self.cases))
        case = self.cases[order[place]]
        length = min(num_slices, case.num_slices)
        return case, int(rng.integers(case.num_slices - length + 1)), length


AnySlabs = TypeVar("AnySlabs", Slabs, ViewSlabs)


def collate(slabs: Sequence[AnySlabs]) -> list[AnySlabs]:
    """Slabs of equal length become a batch; a shorter one, from a small volume, a batch of its own."""
    lengths = sorted({w.positions.shape[1] for w in slabs})
    groups = [[w for w in slabs if w.positions.shape[1] == length] for length in lengths]
    return [type(group[0])(*(torch.cat(parts) for parts in zip(*group, strict=True))) for group in groups]


class EpochSampler(Sampler[SampleKey]):
    """Keys of one epoch after another. Lightning sets the epoch, so a resumed run draws the same slabs."""

    def __init__(self, samples_per_epoch: int) -> None:
        self.samples_per_epoch = samples_per_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleKey]:
        return (SampleKey(self.epoch, number) for number in range(self.samples_per_epoch))

    def __len__(self) -> int:
        return self.samples_per_epoch
