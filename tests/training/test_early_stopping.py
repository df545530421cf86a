"""When a run ends: counted by hand, epoch by epoch, without training anything."""

import pytest

from sam2_3dmed.config import paper_scratch
from sam2_3dmed.training.loop import EarlyStopping
from sam2_3dmed.training.optimizer import Cooldown
from sam2_3dmed.training.trainable import Progress


class Run:
    """Five steps an epoch, a validation after each."""

    def __init__(self, epochs: int, **changes: object) -> None:
        config = paper_scratch().training.model_copy(update={"epochs": epochs, "validate_every": 5, **changes})
        self.cooldown = Cooldown()
        self.stopping = EarlyStopping(config, self.cooldown, 5)
        self.progress = Progress()

    def go(self, *scores: float) -> None:
        """One epoch after another, with these validation scores."""
        for score in scores:
            self.progress.step += 5
            self.stopping.count(score, self.progress)
            self.progress.epoch += 1


def test_patience_counts_from_the_best() -> None:
    run = Run(100, patience=3)
    run.go(0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3)
    assert run.stopping.epochs == 100
    run.go(0.2)
    assert run.stopping.epochs == 8  # at once
    assert run.cooldown.steps == 0


def test_without_patience_it_never_ends_early() -> None:
    run = Run(100, patience=None)
    run.go(*[0.1] * 90)
    assert run.stopping.epochs == 100


def test_the_rate_falls_first() -> None:
    run = Run(100, patience=2, cooldown=0.2)
    run.go(*[0.1 * i for i in range(1, 9)], 0.1, 0.1)
    assert run.stopping.epochs == 12  # 10 epochs and a fifth of that
    assert (run.cooldown.start, run.cooldown.steps) == (50, 10)
    run.go(0.1)
    assert run.stopping.epochs == 12  # it is decided


def test_a_cosine_that_ends_soon_goes_on_as_it_is() -> None:
    run = Run(11, patience=2, cooldown=0.2)
    run.go(*[0.1 * i for i in range(1, 9)], 0.1, 0.1)
    assert (run.stopping.epochs, run.cooldown.steps) == (11, 0)


def test_the_last_epoch_is_validated() -> None:
    assert [epoch for epoch in range(12) if Run(12).stopping.validates(epoch)] == [4, 9, 11]
    assert [epoch for epoch in range(3) if Run(3).stopping.validates(epoch)] == [2]


def test_a_resumed_run_goes_on() -> None:
    run, other = Run(100, patience=2, cooldown=0.5), Run(100, patience=2, cooldown=0.5)
    run.go(0.3, 0.1)
    other.stopping.load_state_dict(run.stopping.state_dict())
    other.progress.epoch = 2
    other.go(0.2)
    assert other.stopping.epochs == 5
    again = Run(100, patience=2)
    again.stopping.load_state_dict(other.stopping.state_dict())
    assert again.stopping.epochs == 5
    assert again.stopping.validates(4)


@pytest.mark.parametrize("score", [0.1, 0.5])
def test_nothing_is_decided_twice(score: float) -> None:
    run = Run(100, patience=1)
    run.go(0.3, 0.3, score)
    assert (run.stopping.epochs, run.stopping.best) == (2, 0.3)
