"""A real network with random weights, small and quick."""

import pytest
import torch

from sam2_3dmed.model.build import build_network


@pytest.fixture(scope="session")
def make_network():
    """Networks of size nano for 64 x 64 pixels, the same weights for the same number of classes."""
    made = {}

    def make(num_classes: int = 2):
        if num_classes not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[num_classes] = build_network(size="nano", image_size=64, num_classes=num_classes).eval()
        return made[num_classes]

    return make


@pytest.fixture(scope="session")
def network(make_network):
    """Two classes."""
    return make_network()
