"""A training run of one step: nano at 64 pixels."""

from collections.abc import Callable

import pytest

from sam2_3dmed.config import RunConfig, paper_scratch, with_settings

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
