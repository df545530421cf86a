"""Training windows: D consecutive slices of a case, drawn and augmented from a seed (readings 5, 6 and 14)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sam2_3dmed.data.augment import WindowAugmentation
from sam2_3dmed.data.cache import CachedCase, CaseCache


class WindowKey(NamedTuple):
    """Names one window of a run: with the seed it fixes every draw."""

    epoch: int
    number: int


class Windows(NamedTuple):
    """Windows of equal length as the network takes them."""

    slices: Tensor
    """(B, D, C, H, W) float32 in [0, 1], C as in the volumes."""
    labels: Tensor
    """(B, D, H, W) class indices, 0 background."""
    positions: Tensor
    """(B, D), each slice's index in its volume; descending where the window is fed in reverse."""

    def single_slices(self) -> "Windows":
        """Every slice as a window of its own: (B D, 1, ...)."""
        return Windows(*(part.flatten(0, 1).unsqueeze(1) for part in self))


class ViewWindows(NamedTuple):
    """Windows of views: what is computed of their slices is found elsewhere."""

    views: Tensor
    """(B, 3), each window's `data.views.View`."""
    labels: Tensor
    """As in `Windows`."""
    positions: Tensor
    """As in `Windows`."""

    def single_slices(self) -> "ViewWindows":
        """Every slice as a window of its own."""
        labels, positions = (part.flatten(0, 1).unsqueeze(1) for part in (self.labels, self.positions))
        return ViewWindows(self.views.repeat_interleave(self.positions.shape[1], dim=0), labels, positions)


class WindowDataset(Dataset[Windows]):
    """Windows of the training cases; the same key gives the same window in any process.

    Of the draws, `foreground_fraction` are centred on a foreground slice: a class first, each as likely as the others,
    then a case that has it, then a slice that holds it, so rare classes come as often as common ones. The others start
    anywhere in the next case of a shuffled round. A volume with fewer than D slices gives a shorter window, never
    padding.

    single_slice_epochs: so many epochs come first whose windows hold D slices that have nothing to do with each other,
    each drawn and augmented on its own; for training that takes every slice alone, such a batch says more.
    """

    def __init__(
        self,
        cache: CaseCache,
        *,
        window_slices: int,
        augmentation: WindowAugmentation,
        foreground_fraction: float,
        seed: int,
        single_slice_epochs: int = 0,
    ) -> None:
        self.cases = list(cache)
        self.window_slices = window_slices
        self.augmentation = augmentation
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self.single_slice_epochs = single_slice_epochs
        classes = {k for case in self.cases for k, slices in case.class_slices.items() if len(slices)}
        self.cases_with = {k: [c for c in self.cases if len(c.class_slices[k])] for k in sorted(classes)}

    def __getitem__(self, key: WindowKey) -> Windows:
        """One window, as a batch of one."""
        rng = np.random.default_rng([self.seed, *key])
        if key.epoch >= self.single_slice_epochs:
            return self._window(key, rng, self.window_slices)
        first = key.number * self.window_slices
        slices = [self._window(WindowKey(key.epoch, first + n), rng, 1) for n in range(self.window_slices)]
        return Windows(*(torch.cat(parts, dim=1) for parts in zip(*slices, strict=True)))

    def _window(self, key: WindowKey, rng: np.random.Generator, num_slices: int) -> Windows:
        case, start, length = self.draw(key, rng, num_slices)
        window = slice(start, start + length)
        image, labels = self.augmentation(
            torch.from_numpy(case.image[window].astype(np.float32)),
            torch.from_numpy(case.label[window].astype(np.int32)),
            rng,
        )
        positions = torch.arange(start, start + length)
        if rng.random() < self.augmentation.config.reverse:
            image, labels, positions = image.flip(0), labels.flip(0), positions.flip(0)
        return Windows(image.unsqueeze(0), labels.unsqueeze(0), positions.unsqueeze(0))

    def draw(self, key: WindowKey, rng: np.random.Generator, num_slices: int) -> tuple[CachedCase, int, int]:
        """The case of a window, its first slice, and its length, which is `num_slices` where the case has as many."""
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


AnyWindows = TypeVar("AnyWindows", Windows, ViewWindows)


def collate(windows: Sequence[AnyWindows]) -> list[AnyWindows]:
    """Windows of equal length become a batch; a shorter one, from a small volume, a batch of its own."""
    lengths = sorted({w.positions.shape[1] for w in windows})
    groups = [[w for w in windows if w.positions.shape[1] == length] for length in lengths]
    return [type(group[0])(*(torch.cat(parts) for parts in zip(*group, strict=True))) for group in groups]


class EpochSampler(Sampler[WindowKey]):
    """Keys of one epoch after another; Lightning tells it the epoch, so a resumed run draws what it would have."""

    def __init__(self, windows_per_epoch: int) -> None:
        self.windows_per_epoch = windows_per_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[WindowKey]:
        return (WindowKey(self.epoch, number) for number in range(self.windows_per_epoch))

    def __len__(self) -> int:
        return self.windows_per_epoch
