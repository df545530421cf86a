"""What feeds a training run: windows of the training cases, and the numbers of the validation cases."""

import os

import torch
from torch.utils.data import DataLoader, Dataset

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.augment import WindowAugmentation
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.data.windows import EpochSampler, WindowDataset, Windows, collate


def window_loader(cases: CaseCache, config: RunConfig, *, window_slices: int, image_size: int) -> DataLoader[Windows]:
    """An epoch of augmented windows in batches, drawn anew for every epoch.

    window_slices: D. image_size: H = W in pixels.
    """
    training = config.training
    dataset = WindowDataset(
        cases,
        window_slices=window_slices,
        augmentation=WindowAugmentation(config.augmentation, image_size),
        foreground_fraction=training.foreground_fraction,
        seed=training.seed,
    )
    workers = training.workers if training.workers is not None else min(8, (os.cpu_count() or 1) - 1)
    return DataLoader(
        dataset,
        batch_size=training.batch_size,
        sampler=EpochSampler(training.windows_per_epoch or len(cases)),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork of a process with threads can hang
        pin_memory=torch.cuda.is_available(),
    )


def case_loader(num_cases: int) -> DataLoader[int]:
    """0, 1, ...: the module looks the volumes up, so that no memory map passes through Lightning."""
    return DataLoader(_Numbers(num_cases), batch_size=None)


class _Numbers(Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number
