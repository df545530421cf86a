"""What all systems' training shares: validation by cases, counts, and what a checkpoint carries."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sam2_3dmed.config import scratch
from sam2_3dmed.training.batch_sharding import Division
from sam2_3dmed.training.run_module import MONITORED, RunModule


class Guess(RunModule):
    """Predicts what it was given."""

    guesses: list[NDArray[np.integer]]
    error = float("nan")

    def parts(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        return self.guesses[number], self.error

    def validation_seconds(self) -> float:
        return 0.0


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Guess:
    truth = np.zeros((3, 4, 4), dtype=np.uint8)
    truth[1, :2], truth[2, 0] = 1, 2
    case: Any = SimpleNamespace(label=truth, image=np.zeros((3, 1, 4, 4)))
    made = Guess(
        nn.Linear(1, 1),
        class_names=["a", "b"],
        validation=[case, case],
        config=scratch().training,
        division=Division(samples_per_epoch=5, batch_size=2),
    )
    half = truth.copy()
    half[2, 0, 2:] = 0
    made.guesses = [truth, half]
    made.logged = {}
    monkeypatch.setattr(made, "log", lambda name, value, **options: made.logged.update({name: value}))
    return made


def test_means_over_cases_and_classes(module: Guess) -> None:
    for number in (1, 0):
        module.validation_step(number, 0)
    module.on_validation_epoch_end()
    assert module.logged["validation/dice_a"] == 1
    assert module.logged["validation/dice_b"] == pytest.approx((1 + 2 * 2 / 6) / 2)
    assert module.logged[MONITORED] == pytest.approx((1 + 5 / 6) / 2)
    assert "position_error/validation" not in module.logged
    assert module.shown.truth.sum() == 8  # the slice with most foreground


def test_an_error_of_positions_is_told_where_there_is_one(module: Guess) -> None:
    module.error = 0.5
    module.validation_step(0, 0)
    module.on_validation_epoch_end()
    assert module.logged["position_error/validation"] == 0.5


def test_stand_ins_do_not_count(module: Guess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "optimizers", lambda: torch.optim.SGD(module.parameters(), lr=0.5))
    for value, counted in ((1.0, 3), (9.0, 0)):
        module.count_step({"total": torch.tensor(value, requires_grad=True)}, 3, counted)
    assert module.means.compute() == {"train/total": 1.0, "learning_rate": 0.5}
    assert not module.latest["total"].requires_grad


def test_a_checkpoint_carries_counts_and_the_way_to_the_end(module: Guess) -> None:
    module.means.add("x", 2.0)
    module.cooldown.start, module.cooldown.steps = 7, 3
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.means.clear()
    module.cooldown.start = module.cooldown.steps = 0
    module.on_load_checkpoint(checkpoint)
    assert module.means.compute() == {"x": 2.0}
    assert (module.cooldown.start, module.cooldown.steps) == (7, 3)
    assert module.steps_per_epoch == 3
