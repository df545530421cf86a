"""When a run ends: counted by hand, epoch by epoch, without training anything."""

from types import SimpleNamespace
from typing import Any

import pytest

from sam2_3dmed.config import scratch
from sam2_3dmed.training.early_stopping import EarlyStopping
from sam2_3dmed.training.run_module import MONITORED


class Run:
    """A trainer and a module that only count: five steps an epoch, a validation after each."""

    def __init__(self, make_module: Any, epochs: int, **changes: object) -> None:
        self.ending = EarlyStopping(scratch().training.model_copy(update={"epochs": epochs, **changes}))
        self.module = make_module(epochs=epochs, single_slice_fraction=0, **changes)
        self.trainer = SimpleNamespace(
            fit_loop=SimpleNamespace(max_epochs=epochs), current_epoch=0, check_val_every_n_epoch=5
        )

    def go(self, *scores: float) -> None:
        """One epoch after another, with these validation scores."""
        for score in scores:
            self.trainer.max_epochs = self.trainer.fit_loop.max_epochs
            self.ending.on_train_epoch_start(self.trainer, self.module)
            self.trainer.global_step = 5 * (self.trainer.current_epoch + 1)
            self.module.trainer = self.trainer
            self.trainer.callback_metrics = {MONITORED: score}
            self.ending.on_validation_end(self.trainer, self.module)
            self.trainer.current_epoch += 1

    @property
    def end(self) -> int:
        return self.trainer.fit_loop.max_epochs


@pytest.fixture
def start(make_module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sam2_3dmed.training.module.TrainingModule.sees_single_slices", property(lambda module: False))
    monkeypatch.setattr("sam2_3dmed.training.module.TrainingModule.trainer", None)
    return lambda epochs, **changes: Run(make_module, epochs, **changes)


def test_patience_counts_from_the_best(start) -> None:
    run = start(100, patience=3)
    run.go(0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3)
    assert run.end == 100
    run.go(0.2)
    assert run.end == 8  # at once
    assert run.module.cooldown.steps == 0


def test_without_patience_it_never_ends_early(start) -> None:
    run = start(100, patience=None)
    run.go(*[0.1] * 90)
    assert run.end == 100


def test_the_rate_falls_first(start) -> None:
    run = start(100, patience=2, cooldown=0.2)
    run.go(*[0.1 * i for i in range(1, 9)], 0.1, 0.1)
    assert run.end == 12  # 10 epochs and a fifth of that
    assert (run.module.cooldown.start, run.module.cooldown.steps) == (50, 10)
    run.go(0.1)
    assert run.end == 12  # nothing more to argmax_mask


def test_a_cosine_that_ends_soon_goes_on_as_it_is(start) -> None:
    run = start(11, patience=2, cooldown=0.2)
    run.go(*[0.1 * i for i in range(1, 9)], 0.1, 0.1)
    assert (run.end, run.module.cooldown.steps) == (11, 0)


def test_the_last_epoch_is_validated(start) -> None:
    run = start(3, patience=None)
    run.go(0.1, 0.1)
    assert run.trainer.check_val_every_n_epoch == 5
    run.go(0.1)
    assert run.trainer.check_val_every_n_epoch == 1


def test_a_resumed_run_knows(start) -> None:
    run, other = start(100, patience=2, cooldown=0.5), start(100, patience=2, cooldown=0.5)
    run.go(0.3, 0.1)
    other.ending.load_state_dict(run.ending.state_dict())
    other.trainer.current_epoch = 2
    other.go(0.2)
    assert other.end == 5
    again = start(100, patience=2)
    again.ending.load_state_dict(other.ending.state_dict())
    again.ending.on_fit_start(again.trainer, again.module)
    assert again.end == 5


def test_epochs_of_single_slices_do_not_count(start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(100, patience=1)
    monkeypatch.setattr("sam2_3dmed.training.module.TrainingModule.sees_single_slices", property(lambda module: True))
    run.go(0.5, 0.1, 0.1)
    assert (run.end, run.ending.best) == (100, None)
