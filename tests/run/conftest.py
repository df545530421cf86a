"""A training run of one step: nano at 64 pixels."""

from collections.abc import Callable

import pytest

from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.config import RunConfig, paper_scratch, with_settings
from sam2_3dmed.run.systems import find_system

QUICK = [
    "model.size=nano",
    "model.image_size=64",
    "slab_slices=3",
    "training.epochs=1",
    "training.single_slice_fraction=0",
    "training.samples_per_epoch=2",
    "training.batch_size=2",
    "training.validate_every=1",
    "training.workers=0",
]


@pytest.fixture(scope="session")
def quick() -> Callable[..., RunConfig]:
    """The recipe `paper_scratch` cut down; more settings as arguments."""
    return lambda *settings: with_settings(paper_scratch(), [*QUICK, *settings])


@pytest.fixture(scope="session")
def quick_patches() -> Callable[..., PatchConfig]:
    """The recipe of a system that learns from patches, cut down; more settings as arguments after its name."""
    few = ["model.size=small", "training.epochs=2", "training.samples_per_epoch=8", "training.validate_every=1"]
    common = [*few, "training.workers=0", "training.precision=32"]
    return lambda system, *settings: find_system(system).recipe(settings=[*common, *settings])
