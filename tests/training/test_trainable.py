"""What the training of all systems shares: validation by cases, and counts."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from sam2_3dmed.config import paper_scratch
from sam2_3dmed.training.loader import Division, Part
from sam2_3dmed.training.trainable import MONITORED, Trainable


class Guess(Trainable):
    """Predicts what it was given."""

    guesses: list[NDArray[np.integer]]
    error = float("nan")

    def losses(self, batch: Any, part: Part) -> Mapping[str, torch.Tensor]:
        return batch

    def parts(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        return self.guesses[number], self.error

    def validation_seconds(self) -> float:
        return 0.0


@pytest.fixture
def module() -> Guess:
    truth = np.zeros((3, 4, 4), dtype=np.uint8)
    truth[1, :2], truth[2, 0] = 1, 2
    case: Any = SimpleNamespace(label=truth, image=np.zeros((3, 1, 4, 4)))
    made = Guess(
        SimpleNamespace(network=nn.Linear(1, 1), labels={1: "a", 3: "b"}),
        DataLoader([], batch_sampler=Division(samples_per_epoch=5, batch_size=4, grad_accum_steps=2)),
        validation=[case, case],
        config=paper_scratch().training,
    )
    half = truth.copy()
    half[2, 0, 2:] = 0
    made.guesses = [truth, half]
    return made


def test_means_over_cases_and_classes(module: Guess) -> None:
    metrics = module.validate([1, 0])
    assert metrics["validation/dice_a"] == 1
    assert metrics["validation/dice_b"] == pytest.approx((1 + 2 * 2 / 6) / 2)
    assert metrics[MONITORED] == pytest.approx((1 + 5 / 6) / 2)
    assert "position_error/validation" not in metrics
    assert module.shown.truth.sum() == 8  # the slice with most foreground


def test_an_error_of_positions_is_a_metric_where_there_is_one(module: Guess) -> None:
    module.error = 0.5
    assert module.validate([0])["position_error/validation"] == 0.5


def test_stand_ins_do_not_count(module: Guess) -> None:
    """In the last step one slab stands in for the other of two passes."""
    for passes, value in ((0, 1.0), (2, 9.0), (3, 4.0)):
        module.progress.passes = passes
        module({"total": torch.tensor(value, requires_grad=True)})
    assert module.means.compute() == {"train/total": (2 * 1.0 + 4.0) / 3}
    assert not module.latest["total"].requires_grad
    assert module.division.steps == 2
