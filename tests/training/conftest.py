"""A training run small enough for a test: nano at 64 pixels on the balls."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sam2_3dmed.config import RunConfig, scratch, with_settings

QUICK = [
    "model.size=nano",
    "model.image_size=64",
    "window_slices=3",
    "training.epochs=4",
    "training.single_slice_fraction=0.25",
    "training.windows_per_epoch=4",
    "training.batch_size=2",
    "training.validate_every=2",
    "training.workers=0",
    "inference.direction=forward",
    "inference.overlap=0",
]


@pytest.fixture(scope="session")
def quick() -> Callable[..., RunConfig]:
    """The recipe `scratch` cut down; more settings as arguments."""
    return lambda *settings: with_settings(scratch(), [*QUICK, *settings])


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
