"""What feeds a training run: batches of slabs of the training cases."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sam2_3dmed.config import RunConfig, TrainingConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.data.slabs import SlabDataset, collate
from sam2_3dmed.data.views import ViewDataset
from sam2_3dmed.training.batch_sharding import Division, Parts
from sam2_3dmed.training.distributed import DistributedContext


def slab_loader(
    cases: CaseCache, config: RunConfig, *, slab_slices: int, image_size: int, distributed: DistributedContext
) -> DataLoader[Any]:
    """An epoch of augmented slabs in batches, drawn anew for every epoch; with a feature cache, of slabs of views.

    slab_slices: D. image_size: H = W in pixels. distributed: of whose batches this process has its share.
    """
    training, cache = config.training, config.feature_cache
    slabs = SlabDataset(
        cases,
        slab_slices=slab_slices,
        augmentation=SlabAugmentation(config.augmentation, image_size),
        foreground_fraction=training.foreground_fraction,
        seed=training.seed,
        single_slice_epochs=training.single_slice_epochs,
    )
    views = ViewDataset(slabs, num_views=cache.views, refresh=cache.refresh) if cache.views > 0 else None
    return epoch_loader(slabs if views is None else views, collate, training, len(cases), distributed)


def epoch_loader(
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    training: TrainingConfig,
    num_cases: int,
    distributed: DistributedContext,
) -> DataLoader[Any]:
    """An epoch of a data set whose keys are `SampleKey`s, in batches that `collate` makes."""
    division = Division(
        training.samples_per_epoch or num_cases,
        training.batch_size,
        training.grad_accum_steps,
        distributed.size,
        distributed.rank,
    )
    workers = training.workers
    if workers is None:
        workers = max(0, min(8, (os.cpu_count() or 1) // distributed.devices - 1))
    return DataLoader[Any](
        dataset,
        batch_sampler=Parts(division),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork of a process with threads can hang
        pin_memory=torch.cuda.is_available(),
    )
