"""The bytes of a step that is not computed are those of one that is."""

import gc

import pytest
import torch

from sam2_3dmed.config import LossConfig, NetworkConfig
from sam2_3dmed.data.slabs import Slabs
from sam2_3dmed.model.build import build_network
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.memory_budget import LiveBytes, Step, counted_bytes


@pytest.fixture(scope="module")
def step() -> Step:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(size="nano", image_size=64, srpp=False), 2).train()
    return Step(network, TotalLoss(LossConfig()), 2)


def slabs(count: int, depth: int) -> Slabs:
    slices = torch.rand(count, depth, 1, 64, 64)
    return Slabs(slices, (slices[:, :, 0] > 0.5).int(), torch.arange(depth).expand(count, -1).contiguous())


def test_live_bytes_by_hand() -> None:
    weight = torch.ones(250)
    with LiveBytes([weight]) as live:
        one = torch.zeros(1000)
        assert (live.now, live.peak) == (4000, 4000)
        view = one.view(10, 100)[0]  # no bytes of its own
        halves = weight.view(2, 125)  # was there before
        two = one + 1
        assert (live.now, live.peak) == (8000, 8000)
        del one
        assert live.now == 8000  # the view holds it
        del view, two
        assert (live.now, live.peak) == (0, 8000)
    assert halves.shape == (2, 125)


def present(slabs: Slabs) -> list[torch.Tensor]:
    return [tensor for tensor in slabs if tensor is not None]


def real_peak(step: Step, example: Slabs) -> int:
    """Of all tensors that live at a time while a real step is taken."""
    weights = [*step.parameters(), *step.buffers()]
    gc.collect()
    with LiveBytes([*weights, *present(example)]) as live:
        for parameter in step.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step(example)
    step.zero_grad()
    return sum(tensor.nbytes for tensor in (*weights, *present(example))) + live.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_counted_is_what_a_real_step_takes(step: Step, checkpointing: bool) -> None:
    step.network.save_memory(activation_checkpointing=checkpointing, slices_at_once=None)
    example = slabs(2, 2)
    assert counted_bytes(step, example) == real_peak(step, example)


def test_a_teachers_pass_is_counted(step: Step) -> None:
    step.network.save_memory(activation_checkpointing=True, slices_at_once=None)
    taught = Step(step.network, TotalLoss(LossConfig(terms={"bce": 1.0, "consistency": 1.0})), 2)
    example = slabs(2, 2)
    example = example._replace(weak=example.slices.clone())
    counted = counted_bytes(taught, example)
    assert counted == real_peak(taught, example)
    assert counted > counted_bytes(taught, example._replace(weak=None))


def test_counting_leaves_no_trace(step: Step) -> None:
    before = [parameter.clone() for parameter in step.parameters()]
    attention = torch.nn.functional.scaled_dot_product_attention
    counted_bytes(step, slabs(1, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in step.parameters())
    assert torch.nn.functional.scaled_dot_product_attention is attention
