"""The loaders: the same epoch in this process and in others, another one the next time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import CaseCache, build_cache
from sam2_3dmed.data.catalog import read_catalog
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan
from sam2_3dmed.training.loader import case_loader, window_loader


@pytest.fixture(scope="module")
def cases(blobs: Path, cache_folder: Path) -> CaseCache:
    catalog = read_catalog(blobs)
    return build_cache(catalog, propose_plan(fingerprint(catalog)), cache_folder)


def epoch(cases: CaseCache, config: RunConfig, number: int) -> list[torch.Tensor]:
    loader = window_loader(cases, config, window_slices=3, image_size=64)
    loader.sampler.set_epoch(number)
    return [windows.slices for batch in loader for windows in batch]


def test_processes_make_the_same_windows(cases: CaseCache, quick: Callable[..., RunConfig]) -> None:
    here, there = (epoch(cases, quick(f"training.workers={count}"), 0) for count in (0, 2))
    assert [tuple(slices.shape) for slices in here] == [(2, 3, 1, 64, 64)] * 2
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert not torch.equal(here[0], epoch(cases, quick(), 1)[0])


def test_cases_by_number() -> None:
    assert list(case_loader(3)) == [0, 1, 2]
