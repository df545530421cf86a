"""The schedule by hand, and what the optimiser holds."""

import math

import pytest
from torch import nn

from sam2_3dmed.config import paper_scratch
from sam2_3dmed.training.optimizer import Cooldown, learning_rate_factor, make_optimizer, make_schedule


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


def test_another_shape_of_the_fall() -> None:
    factors = [learning_rate_factor(step, 100, 0.1, 0.2, lambda progress: 1 - progress) for step in (4, 50, 100)]
    assert factors == pytest.approx([0.5 * (0.2 + 0.8 * 0.96), 0.6, 0.2])
    config = paper_scratch().training.model_copy(update={"warmup_fraction": 0.0})
    linear = make_schedule(
        make_optimizer(nn.Linear(1, 1), config), config, 0, 10, falling=lambda progress: 1 - progress
    )
    assert linear.lr_lambdas[0](5) == pytest.approx(config.slab_rate * (0.1 + 0.9 * 0.5))


def test_each_part_of_the_run_has_its_own_schedule() -> None:
    config = paper_scratch().training.model_copy(update={"slab_rate": 0.25})
    schedule = make_schedule(make_optimizer(nn.Linear(1, 1), config), config, 15, 5)
    (rate,) = schedule.lr_lambdas
    assert [rate(step) for step in range(15)] == [learning_rate_factor(step, 15, 0.05, 0.1) for step in range(15)]
    slabs = [0.25 * learning_rate_factor(step, 5, 0.05, 0.1) for step in range(5)]
    assert [rate(15 + step) for step in range(5)] == slabs


def test_a_cooldown_goes_from_the_rate_as_it_is_to_the_final_one() -> None:
    config = paper_scratch().training.model_copy(update={"slab_rate": 0.25})
    cooldown = Cooldown()
    schedule = make_schedule(make_optimizer(nn.Linear(1, 1), config), config, 15, 100, cooldown)
    (rate,) = schedule.lr_lambdas
    before = [rate(step) for step in range(40)]
    cooldown.start, cooldown.steps = 35, 4
    assert [rate(step) for step in range(36)] == before[:36]
    final = 0.25 * config.final_learning_rate_fraction
    assert rate(37) == pytest.approx((before[35] + final) / 2)
    assert rate(39) == rate(80) == pytest.approx(final)
    assert before[39] > 2 * final


def test_the_optimiser_holds_what_trains() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    network[0].requires_grad_(False)
    (group,) = make_optimizer(network, paper_scratch().training).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in network[1].parameters()}
    assert group["lr"] > 0


def test_the_encoder_has_a_rate_for_each_layer() -> None:
    """By hand: half the rate, and a tenth of that for each layer deeper; the rest comes first, at the full rate."""
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    network[1].bias.requires_grad_(False)
    layers = [list(layer.parameters()) for layer in network[:3]]
    config = paper_scratch().training.model_copy(update={"learning_rate": 1.0, "encoder_rate": 0.5, "layer_decay": 0.1})
    groups = make_optimizer(network, config, layers).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1.0, 0.005, 0.05, 0.5])
    expected = [list(network[3].parameters()), layers[0], [network[1].weight], layers[2]]
    assert [list(map(id, group["params"])) for group in groups] == [list(map(id, part)) for part in expected]
    assert {group["weight_decay"] for group in groups} == {config.weight_decay}


def test_every_rate_follows_the_schedule() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    config = paper_scratch().training.model_copy(update={"encoder_rate": 0.1, "warmup_fraction": 0.0})
    optimizer = make_optimizer(network, config, [list(network[0].parameters())])
    schedule = make_schedule(optimizer, config, 0, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    full, encoder = (group["lr"] for group in optimizer.param_groups)
    assert full == pytest.approx(config.learning_rate * config.slab_rate * learning_rate_factor(5, 10, 0.0, 0.1))
    assert encoder == pytest.approx(0.1 * full)


def test_muon_is_for_matrices_that_mix_channels() -> None:
    """By hand: of the layers the wide linear one and the wide convolution; not the narrow, the depthwise, the table."""
    network = nn.ModuleDict(
        {
            "linear": nn.Linear(16, 16),
            "narrow": nn.Linear(15, 16),
            "convolution": nn.Conv2d(16, 17, 3),
            "pixels": nn.Conv2d(3, 16, 7),
            "depthwise": nn.Conv2d(16, 16, 7, groups=16),
            "table": nn.Embedding(16, 16),
        }
    )
    network["convolution"].bias.requires_grad_(False)
    network["pixels"].bias.requires_grad_(False)
    config = paper_scratch().training.model_copy(
        update={"optimizer": "muon", "encoder_rate": 0.5, "learning_rate": 1.0}
    )
    encoder = [list(network["linear"].parameters())]
    groups = make_optimizer(network, config, encoder).param_groups
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = [(group["lr"], group["matrices"], [names[p] for p in group["params"]]) for group in groups]
    others = ["narrow.weight", "narrow.bias", "pixels.weight", "depthwise.weight", "depthwise.bias", "table.weight"]
    assert found[0] == (1.0, False, others)
    assert sorted(found[1:]) == [
        (0.5, False, ["linear.bias"]),
        (0.5, True, ["linear.weight"]),
        (1.0, True, ["convolution.weight"]),
    ]


def test_equal_rates_are_one_group_in_the_networks_order() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    (group,) = make_optimizer(network, paper_scratch().training, [list(network[0].parameters())]).param_groups
    assert list(map(id, group["params"])) == list(map(id, network.parameters()))
