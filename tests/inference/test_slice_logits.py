"""One way to the logits of a stack, whatever the mode: every slice once, no gradients, nothing left behind."""

from itertools import product
from threading import Event

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.errors import Cancelled
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward

ALL = list(product(["slabs", "stream"], ["forward", "backward", "both"]))


def stack(depth, seed=0):
    return np.random.default_rng(seed).random((depth, 1, 20, 30), dtype=np.float32)


@pytest.mark.parametrize(("mode", "direction"), ALL)
@pytest.mark.parametrize("depth", [1, 7])
def test_every_slice_comes_once_without_a_graph(network, mode, direction, depth):
    config = InferenceConfig(mode=mode, direction=direction)
    found = dict(slice_logits(Forward(network, stack(depth), config), 3))
    assert sorted(found) == list(range(depth))
    for logits in found.values():
        assert logits.shape == (2, 16, 16)
        assert not logits.requires_grad
        assert logits.isfinite().all()


def test_the_readers_mode_is_left_alone(network):
    for _ in slice_logits(Forward(network, stack(3), InferenceConfig()), 3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_stack_of_one_slab_is_the_same_in_both_modes(network, direction):
    one, other = (
        dict(slice_logits(Forward(network, stack(4), config), 6))
        for config in (InferenceConfig(mode=m, direction=direction, precision="32") for m in ("slabs", "stream"))
    )
    for index in range(4):
        torch.testing.assert_close(one[index], other[index], atol=1e-4, rtol=1e-4)


class OnDemand:
    """Slices that exist only when asked for."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.most = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, which):
        part = self.array[which].copy()
        self.most = max(self.most, len(part))
        return part


@pytest.mark.parametrize(("mode", "direction"), ALL)
def test_slices_may_be_made_on_demand(network, mode, direction):
    config = InferenceConfig(mode=mode, direction=direction)
    slices = OnDemand(stack(12))
    found = dict(slice_logits(Forward(network, slices, config), 3))
    assert slices.most <= 3 if mode == "stream" else slices.most < 12
    expected = dict(slice_logits(Forward(network, slices.array, config), 3))
    assert all(torch.equal(found[index], expected[index]) for index in range(12))


@pytest.mark.parametrize("mode", ["slabs", "stream"])
def test_cancelled_while_no_slice_is_finished_yet(network, monkeypatch, mode):
    """The first of a stream's two passes finishes none."""
    monkeypatch.setattr(Forward, "chunk", 1)
    cancel, asked = Event(), []

    class Asked(OnDemand):
        def __getitem__(self, which):
            asked.append(which.start)
            if which.start == 2:
                cancel.set()
            return super().__getitem__(which)

    with pytest.raises(Cancelled):
        next(slice_logits(Forward(network, Asked(stack(12)), InferenceConfig(mode=mode), cancel=cancel), 6))
    assert asked == [0, 1, 2]
