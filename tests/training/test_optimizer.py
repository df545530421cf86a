"""The schedule by hand, and what the optimiser holds."""

import math

import pytest
from torch import nn

from sam2_3dmed.config import scratch
from sam2_3dmed.training.optimizer import learning_rate_factor, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("step", "warmup", "final", "expected"),
    [
        (0, 0.0, 0.1, 1.0),
        (50, 0.0, 0.1, 0.55),
        (100, 0.0, 0.1, 0.1),
        (250, 0.0, 0.1, 0.1),  # beyond the end it stays there
        (25, 0.0, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),
        (0, 0.1, 1.0, 0.1),
        (4, 0.1, 1.0, 0.5),
        (9, 0.1, 1.0, 1.0),
        (60, 0.1, 1.0, 1.0),
    ],
)
def test_learning_rate(step: int, warmup: float, final: float, expected: float) -> None:
    assert learning_rate_factor(step, 100, warmup, final) == pytest.approx(expected)


def test_each_part_of_the_run_has_its_own_schedule() -> None:
    config = scratch().training.model_copy(update={"window_rate": 0.25})
    schedule = make_schedule(make_optimizer(nn.Linear(1, 1), config), config, 15, 5)
    (rate,) = schedule.lr_lambdas
    assert [rate(step) for step in range(15)] == [learning_rate_factor(step, 15, 0.05, 0.1) for step in range(15)]
    windows = [0.25 * learning_rate_factor(step, 5, 0.05, 0.1) for step in range(5)]
    assert [rate(15 + step) for step in range(5)] == windows


def test_the_optimiser_holds_what_trains() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    network[0].requires_grad_(False)
    (group,) = make_optimizer(network, scratch().training).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in network[1].parameters()}
    assert group["lr"] > 0
