"""Means by hand; what a checkpoint carries goes on as if nothing had been between."""

import torch

from sam2_3dmed.training.epoch_metrics import EpochMeans, merged


def test_weighted_means_by_name_in_their_order() -> None:
    means = EpochMeans()
    means.add("b", torch.tensor(1.0), 3)
    means.add("a", 5.0)
    means.add("b", torch.tensor(2.0), 1)
    assert means.compute() == {"b": 1.25, "a": 5.0}
    assert list(means.compute()) == ["b", "a"]
    means.clear()
    assert means.compute() == {}


def test_a_state_goes_on_to_the_last_digit() -> None:
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))
    straight, resumed = EpochMeans(), EpochMeans()
    for value in values[:4]:
        straight.add("x", value, 0.1)
    resumed.load_state_dict(straight.state_dict())
    for means in (straight, resumed):
        for value in values[4:]:
            means.add("x", value, 0.1)
    assert straight.compute() == resumed.compute()


def test_several_processes_weigh_by_what_they_counted() -> None:
    means = EpochMeans()
    means.add("x", 1.0, 1)
    other = EpochMeans()
    other.add("x", 4.0, 3)
    other.add("y", 2.0, 0)  # counts for nothing, as may be all that a process has
    other.add("z", 7.0)
    assert means.compute(lambda state: [state, other.state_dict()]) == {"x": 13 / 4, "z": 7.0}
    resumed = EpochMeans()
    resumed.load_state_dict(merged([means.state_dict(), other.state_dict()]))
    assert resumed.compute() == {"x": 13 / 4, "z": 7.0}


def test_no_gradient_is_held() -> None:
    means = EpochMeans()
    means.add("x", torch.ones((), requires_grad=True) * 2)
    assert not means._sums["x"].requires_grad
