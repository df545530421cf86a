"""Prepared balls, and specs of small networks for them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sam2_3dmed.baselines.cache import GriddedCase, with_grids
from sam2_3dmed.baselines.recipe import PatchSpec
from sam2_3dmed.config import Plan
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.dataset import MedicalDataset
from sam2_3dmed.run.systems import find_system


class Balls(NamedTuple):
    """The data set of balls, prepared."""

    plan: Plan
    catalog: MedicalDataset
    cache: list[CachedCase]
    cases: list[GriddedCase]


@pytest.fixture(scope="session")
def balls(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Balls:
    from sam2_3dmed.data.cache import build_cache
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.fingerprint import fingerprint
    from sam2_3dmed.data.plan import propose_plan

    catalog = read_dataset(blobs)
    plan = propose_plan(fingerprint(catalog))
    cache = build_cache(catalog, plan, tmp_path_factory.mktemp("cache"))
    return Balls(plan, catalog, cache, with_grids(cache, catalog, plan.slicing_axis))


@pytest.fixture(scope="session")
def make_spec(balls: Balls) -> Callable[..., PatchSpec]:
    """The spec of a small network for the balls; settings as arguments."""
    from sam2_3dmed.baselines.train import plan_spec

    def make(system: str = "unet", *settings: str) -> PatchSpec:
        return plan_spec(find_system(system).recipe(settings=["model.size=small", *settings]), balls.plan, balls.cases)

    return make
