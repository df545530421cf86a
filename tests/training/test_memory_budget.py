"""Which way to take a step is picked for a budget, and what is said where nothing fits."""

import logging
import math

import pytest
import torch

from sam2_3dmed.config import ChannelPlan, InferenceConfig, NetworkConfig, Plan
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.training import memory_budget
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.memory_budget import (
    GB,
    MARGIN,
    OVERHEAD,
    MemoryStrategy,
    Step,
    counted_bytes,
    empty_slabs,
    fastest_strategy,
    fit_to_memory,
    what_would_fit,
)

PLAN = Plan(
    dataset="Balls",
    channels=(ChannelPlan(name="CT", normalisation="fixed", low=0, high=1),),
    labels={1: "ball"},
    slab_slices=2,
)


def bytes_of(way: MemoryStrategy) -> float:
    """A tenth with checkpointing; encoding all slices at once costs 10."""
    return way.slabs * (10 if way.checkpointing else 100) + 10 * (way.encoder_slices is None)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (810, MemoryStrategy(8, False, None)),
        (809, MemoryStrategy(4, False, None)),  # 8 slabs pass in 1, 2, 3, 4 or 8 passes of 8, 4, 3, 2 and 1
        (320, MemoryStrategy(3, False, None)),
        (110, MemoryStrategy(1, False, None)),
        (109, MemoryStrategy(1, False, 4)),
        (99, MemoryStrategy(8, True, 4)),
        (79, MemoryStrategy(4, True, 4)),
        (10, MemoryStrategy(1, True, 4)),
        (9, None),
    ],
)
def test_the_fastest_way_that_fits(budget: float, expected: MemoryStrategy | None) -> None:
    assert fastest_strategy(bytes_of, 8, budget) == expected


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False), 1)
    return Predictor(
        network, preprocessing=PLAN.preprocessing, labels=PLAN.labels, slab_slices=2, config=InferenceConfig()
    )


def test_plenty_changes_nothing(quick, predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    config = quick("training.batch_size=3", "training.single_slice_fraction=0")
    with caplog.at_level(logging.INFO):
        assert fit_to_memory(config, PLAN, predictor, 100.0, ranks=2) == config
    line = "in 100 GB, 2 slabs a step in 1 pass(es): 2 slabs in a pass, no checkpointing, all slices encoded at once"
    assert line in caplog.text


def test_the_budget_is_kept_as_counted(quick, predictor: Predictor) -> None:
    """Just enough for a slab with everything kept, and a little less."""
    config = quick("training.batch_size=2", "training.single_slice_fraction=0")
    step = Step(predictor.network, TotalLoss(config.loss), 1)
    predictor.network.save_memory(activation_checkpointing=False, slices_at_once=None)
    adam = 2 * sum(parameter.nbytes for parameter in step.parameters())
    one, two = (counted_bytes(step, empty_slabs(count, 2, 1, 64)) + adam for count in (1, 2))
    enough = (one / (1 - MARGIN) + OVERHEAD) / GB
    training = fit_to_memory(config, PLAN, predictor, enough * (1 + 1e-9)).training
    assert one < two
    assert (training.batch_size, training.grad_accum_steps) == (2, 2)
    assert (training.activation_checkpointing, training.encoder_slices) == (False, None)


@pytest.mark.parametrize(
    ("bytes_of_a_slice", "advice"),
    [
        (
            2e9,
            "14.03 GB would do, or --set slab_slices=3",
        ),  # 12 - 0.9 * 7.3 GB are lacking, of which 90% count
        (8e9, "54.03 GB would do, or a smaller model.size or model.image_size"),
        (math.inf, "the GPU has no more, or a smaller model.size or model.image_size"),
    ],
)
def test_what_is_said_where_nothing_fits(bytes_of_a_slice: float, advice: str) -> None:
    text = what_would_fit(lambda slices: slices * bytes_of_a_slice, 6, (8 * GB - OVERHEAD) * (1 - MARGIN), 8)
    assert text == f"--gpu-memory 8: too little for any way to train with 6 slices a slab; {advice}"


def test_nothing_fits(quick, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "counted_bytes", lambda step, slabs: GB * slabs.slices.shape[1])
    with pytest.raises(ConfigError, match=r"2 slices a slab; 2\.\d+ GB would do, or --set slab_slices=1"):
        fit_to_memory(quick(), PLAN, predictor, 2)
