"""The loaders: the same epoch in this process and in others, another one the next time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import CachedCase, build_cache
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan
from sam2_3dmed.data.slabs import ViewSlabs
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.slab_training import SlabTraining, assemble_slabs


@pytest.fixture(scope="module")
def cases(blobs: Path, cache_folder: Path) -> list[CachedCase]:
    catalog = read_dataset(blobs)
    return build_cache(catalog, propose_plan(fingerprint(catalog)), cache_folder)


Loader = Callable[..., DataLoader]


@pytest.fixture
def slab_loader(cases: list[CachedCase], make_module: Callable[..., SlabTraining]) -> Loader:
    """The loader that a small network learns from, of slabs of three slices at 64 pixels."""

    def make(config: RunConfig, distributed: DistributedContext | None = None) -> DataLoader:
        predictor = make_module().predictor
        if config.feature_cache.views > 0:
            predictor.network.encoder.freeze()
        return assemble_slabs(predictor, cases, [], config, Path("none"), distributed or DistributedContext()).loader

    return make


def epoch(loader: DataLoader, number: int) -> list[torch.Tensor]:
    loader.batch_sampler.move_to(number)
    return [slabs.slices for batch in loader for slabs in batch]


def test_processes_make_the_same_slabs(slab_loader: Loader, quick: Callable[..., RunConfig]) -> None:
    here, there = (epoch(slab_loader(quick(f"training.workers={count}")), 0) for count in (0, 2))
    assert [tuple(slices.shape) for slices in here] == [(2, 3, 1, 64, 64)] * 2
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert not torch.equal(here[0], epoch(slab_loader(quick()), 1)[0])


def test_processes_share_a_batch(slab_loader: Loader, quick: Callable[..., RunConfig]) -> None:
    """Two processes, two passes a step: each slab once, as one process has it."""
    config = quick("training.batch_size=4", "training.grad_accum_steps=2")
    loaders = [slab_loader(config, DistributedContext(2, rank=rank)) for rank in (0, 1)]
    passes = [[slabs.slices for batch in loader for slabs in batch] for loader in loaders]
    shared = torch.cat([slices for pair in zip(*passes, strict=True) for slices in pair])
    assert torch.equal(shared, torch.cat(epoch(slab_loader(quick("training.batch_size=4")), 0)))


def test_with_a_feature_cache_they_are_slabs_of_views(slab_loader: Loader, quick: Callable[..., RunConfig]) -> None:
    config = quick("feature_cache.views=2", "feature_cache.refresh=1", "training.samples_per_epoch=8")
    loader = slab_loader(config)
    loader.batch_sampler.move_to(5)
    batch = [slabs for batch in loader for slabs in batch]
    assert all(isinstance(slabs, ViewSlabs) for slabs in batch)
    assert [tuple(slabs.labels.shape) for slabs in batch] == [(2, 3, 64, 64)] * 4
    views = torch.cat([slabs.views for slabs in batch])
    assert set(views[:, 1].tolist()) == {0, 1}
    assert set(views[:, 2].tolist()) == {5}
