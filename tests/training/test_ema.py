"""The average by hand, on one weight that loses 1 in every step and one that is frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader

from sam2_3dmed.training.ema import IN_TRAINING, WeightAverage
from sam2_3dmed.training.trainer import quiet_lightning

STEPS = 4


class Countdown(lightning.LightningModule):
    """Its weight is 10, 9, 8, ...; notes what validation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.validated: list[float] = []
        self.on_validation: Callable[[], None] = lambda: None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.weight.item())
        self.on_validation()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)


def averages(decay: float, steps: int) -> list[float]:
    """The definition: of each step the average keeps `decay`, the first steps less."""
    average, found = 10.0, []
    for step in range(1, steps + 1):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * (10.0 - step)
        found.append(average)
    return found


def fit(module: Countdown, folder: Path, *, epochs: int = 2, decay: float = 0.5, **options: Any) -> lightning.Trainer:
    """Epochs of `STEPS` batches, each followed by a validation."""
    resume = options.pop("ckpt_path", None)
    others = options.pop("callbacks", [])
    batches = DataLoader(range(STEPS), batch_size=1)
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[*others, WeightAverage(decay)],
            logger=False,
            enable_checkpointing=bool(others),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            **options,
        )
        trainer.fit(module, batches, DataLoader([0]), ckpt_path=resume)
    return trainer


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.9])
def test_what_is_validated_and_left_is_the_average_and_training_goes_on_without_it(
    tmp_path: Path, decay: float
) -> None:
    module = Countdown()
    trainer = fit(module, tmp_path, decay=decay)
    expected = averages(decay, 2 * STEPS)
    assert module.validated == pytest.approx([expected[STEPS - 1], expected[-1]])
    assert module.weight.item() == pytest.approx(expected[-1])
    with quiet_lightning():
        trainer.validate(module, DataLoader([0]), verbose=False)
    assert module.validated[-1] == module.weight.item() == pytest.approx(expected[-1])


def test_a_large_decay_hardly_holds_the_first_steps_back(tmp_path: Path) -> None:
    """After four steps 0.999 alone would leave 99% of the first weight's value; here the average has followed."""
    module = Countdown()
    fit(module, tmp_path, epochs=1, decay=0.999)
    assert 6.0 < module.weight.item() < 7.0


def test_what_is_frozen_is_not_averaged_and_keeps_its_last_bit(tmp_path: Path) -> None:
    """With 0.999 x + 0.001 x in every step it would not."""
    module = Countdown()
    trainer = fit(module, tmp_path, epochs=100, decay=0.999)
    assert torch.equal(module.frozen, torch.tensor(0.1))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert read(tmp_path / "end.ckpt")[IN_TRAINING].keys() == {"weight"}


@pytest.mark.parametrize("when", ["in validation", "after training"])
def test_a_checkpoint_holds_the_average_and_beside_it_the_weights_in_training(tmp_path: Path, when: str) -> None:
    module, path = Countdown(), tmp_path / "now.ckpt"
    if when == "in validation":
        module.on_validation = lambda: module.trainer.save_checkpoint(path)
    trainer = fit(module, tmp_path)
    if when == "after training":
        trainer.save_checkpoint(path)
    checkpoint = read(path)
    assert checkpoint["state_dict"]["weight"].item() == pytest.approx(averages(0.5, 2 * STEPS)[-1])
    assert checkpoint[IN_TRAINING]["weight"].item() == 10 - 2 * STEPS
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()


class SavesAt(Checkpoint):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [STEPS - 1, STEPS, STEPS + 1])
def test_a_resumed_average_is_the_uninterrupted_one(tmp_path: Path, step: int) -> None:
    """Also from the middle of an epoch; whoever saves there, the average has seen the step by then."""
    straight, resumed, cut = Countdown(), Countdown(), tmp_path / "cut.ckpt"
    fit(straight, tmp_path, epochs=3, callbacks=[SavesAt(step, cut)])
    assert read(cut)["state_dict"]["weight"].item() == pytest.approx(averages(0.5, step)[-1])
    fit(resumed, tmp_path, epochs=3, ckpt_path=cut)
    assert straight.validated[-len(resumed.validated) :] == resumed.validated
    assert torch.equal(straight.weight, resumed.weight)


def test_gradients_that_accumulate_are_one_step(tmp_path: Path) -> None:
    module = Countdown()
    fit(module, tmp_path, epochs=1, accumulate_grad_batches=2)
    assert module.validated == pytest.approx([averages(0.5, STEPS // 2)[-1]])
