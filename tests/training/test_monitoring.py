"""Means, gradients, waiting and curves by hand."""

import csv
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sam2_3dmed.training import monitoring
from sam2_3dmed.training.monitoring import DataWait, EpochMeans, append_curves, gradient_norms


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


def test_several_processes_weigh_by_what_they_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    means = EpochMeans()
    means.add("x", 1.0, 1)
    # "y" counts for nothing, as may be all that a process has.
    other = {"x": (12.0, 3.0), "y": (0.0, 0.0), "z": (7.0, 1.0)}
    monkeypatch.setattr(monitoring, "gather", lambda state: [state, other])
    assert means.compute() == {"x": 13 / 4, "z": 7.0}
    resumed = EpochMeans()
    resumed.load_state_dict(means.state_dict())
    monkeypatch.undo()
    assert resumed.compute() == {"x": 13 / 4, "z": 7.0}


def test_no_gradient_is_held() -> None:
    means = EpochMeans()
    means.add("x", torch.ones((), requires_grad=True) * 2)
    assert not means._sums["x"].requires_grad


def test_the_norm_of_each_part_that_has_gradients(make_module) -> None:
    module = make_module()
    network = module.network
    assert gradient_norms(module.parts()) == {}
    for part, value in ((network.encoder, 2.0), (network.boundary_to_segmentation, 3.0)):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, value)
    norms = gradient_norms(module.parts())
    assert list(norms) == ["encoder", "fusion"]
    for name, part, value in (("encoder", network.encoder, 2.0), ("fusion", network.boundary_to_segmentation, 3.0)):
        count = sum(parameter.numel() for parameter in part.parameters())
        assert norms[name].item() == pytest.approx(value * math.sqrt(count))


def test_parts_that_are_switched_off_have_none(make_module) -> None:
    module = make_module()
    network = module.network
    network.srpp = network.boundary = network.boundary_to_segmentation = None
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert list(gradient_norms(module.parts())) == ["encoder", "segmentation"]


class Clock:
    """Time passes only where a test lets it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("loading", "working", "share"), [(1, 0, 1), (0, 1, 0), (1, 4, 1 / 5), (1, 19, 0.05)])
def test_the_share_of_waiting(caplog: pytest.LogCaptureFixture, loading: float, working: float, share: float) -> None:
    """Validation and checkpoints, after `done`, take much longer, and must not count."""
    clock = Clock()
    wait = DataWait(clock)

    def load() -> Iterator[None]:
        for _ in range(3):
            clock.now += loading
            yield

    for _ in range(2):
        for _ in wait.batches(load()):
            clock.now += working
            wait.done()
            clock.now += 1000
        assert wait.end_epoch() == pytest.approx(share)
    with caplog.at_level(logging.INFO):
        wait.log()
    assert f"waiting for slabs took {100 * share:.1f}% of training" in caplog.text
    assert ("more training.workers" in caplog.text) == (share > 0.1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_validation_metrics_stand_in_the_epoch_that_validated(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    append_curves(path, {"epoch": 0, "train/total": 1.0})
    append_curves(path, {"epoch": 1, "train/total": 0.5, "validation/dice": 0.25})
    append_curves(path, {"epoch": 2, "train/total": 0.25})
    assert rows(tmp_path / "curves.csv") == [
        {"epoch": "0", "train/total": "1.0", "validation/dice": ""},
        {"epoch": "1", "train/total": "0.5", "validation/dice": "0.25"},
        {"epoch": "2", "train/total": "0.25", "validation/dice": ""},
    ]


def test_a_resumed_run_cuts_what_its_checkpoint_had_not_reached(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    for epoch in range(3):
        append_curves(path, {"epoch": epoch, "train/total": float(epoch)})
    append_curves(path, {"epoch": 2, "train/total": 9.0})
    assert [row["train/total"] for row in rows(path)] == ["0.0", "1.0", "9.0"]
