"""The arithmetic of minutes by hand; what is written down holds; and a run that measures for itself."""

import json
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import TrainingConfig, paper_scratch, with_settings
from sam2_3dmed.errors import DataError
from sam2_3dmed.training.slab_training import SlabTraining
from sam2_3dmed.training.trials import SCHEDULE_FILE, Costs, Schedule, fitting_schedule, read_schedule

MARGIN = 0.97


def recipe(*settings: str, minutes: float = 10) -> TrainingConfig:
    return with_settings(paper_scratch(), ["training.epochs=50", f"training.minutes={minutes}", *settings]).training


def seconds(training: TrainingConfig, schedule: Schedule, costs: Costs) -> float:
    """What a schedule takes, added up epoch by epoch."""
    total = costs.spent
    for epoch in range(schedule.epochs):
        single = epoch < int(training.single_slice_fraction * schedule.epochs)
        total += schedule.batches * (costs.single_slices if single else costs.slabs)
        last = epoch + 1 == schedule.epochs
        total += costs.validation * (last or (epoch + 1) % min(training.validate_every, schedule.epochs) == 0)
    return total


def test_whole_epochs_and_what_is_left_is_spread_over_them() -> None:
    config = recipe("training.single_slice_fraction=0", "training.validate_every=1000")
    costs = Costs(single_slices=1.0, slabs=1.0, validation=0.0, spent=0.0)
    # 582 seconds: 58 epochs of 10 batches are 580.
    assert fitting_schedule(config, 10, costs) == Schedule(58, 10)
    assert fitting_schedule(config, 100, costs) == Schedule(20, 29)  # few epochs: they are cut short
    assert fitting_schedule(config, 1, costs) == Schedule(582, 1)


@pytest.mark.parametrize("minutes", [0.5, 3, 30, 1000])
@pytest.mark.parametrize("fraction", [0, 0.5, 0.82])
@pytest.mark.parametrize("validation", [0.0, 0.3, 5.0])
def test_it_fits_and_nearly_fills_the_time(minutes: float, fraction: float, validation: float) -> None:
    config = recipe(f"training.single_slice_fraction={fraction}", "training.validate_every=7", minutes=minutes)
    costs = Costs(single_slices=0.02, slabs=0.05, validation=validation, spent=2.0)
    schedule = fitting_schedule(config, 25, costs)
    total, allowed = seconds(config, schedule, costs), 60 * minutes * MARGIN
    assert total <= allowed + 1e-9 or schedule.batches == 1
    for more in (Schedule(schedule.epochs, schedule.batches + 1), Schedule(schedule.epochs + 1, schedule.batches)):
        assert seconds(config, more, costs) > allowed - 1e-9


def test_a_recipe_with_few_epochs_keeps_them() -> None:
    config = recipe("training.epochs=3", "training.single_slice_fraction=0.34", minutes=0.1)
    costs = Costs(single_slices=0.1, slabs=0.2, validation=0.0, spent=0.0)
    assert fitting_schedule(config, 1000, costs) == Schedule(3, int(6 * MARGIN / 0.5))


def test_no_time_at_all_is_a_batch_an_epoch() -> None:
    assert fitting_schedule(recipe(minutes=0.1), 10, Costs(1, 1, 100, 10)) == Schedule(20, 1)


def test_features_that_are_computed_once() -> None:
    config = recipe("training.single_slice_fraction=0", "training.validate_every=1000")
    costs = Costs(single_slices=1.0, slabs=1.0, validation=0.0, spent=0.0, first_time=2.0, first_times=91)
    assert fitting_schedule(config, 10, costs) == Schedule(40, 10)  # 582 - 2 * 91
    # Fewer batches than it takes until all are there: each pays.
    assert fitting_schedule(
        recipe("training.single_slice_fraction=0"),
        10,
        costs.__class__(1.0, 1.0, 0.0, 0.0, first_time=2.0, first_times=1000),
    ) == Schedule(21, 9)


def test_a_broken_schedule_is_named(tmp_path: Path) -> None:
    path = tmp_path / SCHEDULE_FILE
    assert read_schedule(path) is None
    path.write_text('{"epochs": 3}')
    with pytest.raises(DataError, match=r"schedule\.json: expected"):
        read_schedule(path)


def test_a_run_measures_once_and_keeps_to_it(fit_on_balls, short, tmp_path: Path) -> None:
    config = short("training.minutes=0.01", "training.epochs=2")
    _, result = fit_on_balls(config, tmp_path)
    written = json.loads((tmp_path / SCHEDULE_FILE).read_text())
    assert written["epochs"] == result.epochs >= 2
    assert written["epochs"] * written["batches"] == result.steps
    assert all(written["seconds"][kind] > 0 for kind in ("single_slices", "slabs", "validation", "spent"))
    # Resumed, the number holds, however fast the machine is now.
    (tmp_path / SCHEDULE_FILE).write_text(json.dumps({"epochs": result.epochs + 1, "batches": written["batches"]}))
    _, resumed = fit_on_balls(config, tmp_path, resume=True)
    assert resumed.epochs == result.epochs + 1


def test_the_pass_of_a_teacher_is_measured_too(fit_on_balls, short, tmp_path: Path, monkeypatch) -> None:
    steps = []
    teach = SlabTraining._teach

    def noting(self: SlabTraining, weak: torch.Tensor) -> torch.Tensor:
        steps.append(self.progress.step)
        return teach(self, weak)

    monkeypatch.setattr(SlabTraining, "_teach", noting)
    taught = ["loss.terms={dice: 1, consistency: 1}", "training.ema_decay=0.9", "training.single_slice_fraction=0"]
    _, result = fit_on_balls(short("training.minutes=0.01", *taught), tmp_path)
    whole = 2 * 2  # epochs of the recipe, of two steps
    assert steps[:3] == [whole, whole + 1, whole + 2]
    assert steps[-1] == result.steps - 1  # the run itself began anew
