"""The training contract: it learns, it repeats, it resumes exactly, and what is frozen stays frozen."""

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import RunConfig
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.sam2_model import make_predictor
from sam2_3dmed.training.checkpoints import best_state, saved_states, step_of
from sam2_3dmed.training.distributed import seed_all
from sam2_3dmed.training.loop import TrainingLoop

Quick = Callable[..., RunConfig]
Fit = Callable[..., tuple]


def assert_same(one: SAM2For3dMed, other: SAM2For3dMed) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(fit_on_balls: Fit, short: Quick, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A short run that nothing stopped: its recipe, network and folder."""
    config, folder = short(), tmp_path_factory.mktemp("straight")
    return config, fit_on_balls(config, folder)[0], folder


def test_a_run_that_ends_early_is_resumed_exactly(
    fit_on_balls: Fit, short: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation never gains, so the end is set after two epochs, and the rate falls until then."""
    monkeypatch.setattr("sam2_3dmed.training.trainable.dice", lambda *masks: 0.5)
    settings = ("training.epochs=50", "training.single_slice_fraction=0", "training.warmup_fraction=0")
    config = short(
        *settings,
        "training.samples_per_epoch=1",
        "training.validate_every=1",
        "training.patience=1",
        "training.cooldown=1",
    )
    network, whole = fit_on_balls(config, tmp_path / "straight")
    assert (whole.epochs, whole.steps) == (4, 4)
    curve = rows(tmp_path / "straight")
    rates = [float(row["learning_rate"]) for row in curve]
    assert rates[1] > 0.99 * config.training.learning_rate * config.training.slab_rate  # as of 50 epochs
    assert rates[3] == pytest.approx(0.55 * rates[2], rel=1e-3)  # halfway down to a tenth

    begin = TrainingLoop._train_epoch

    def power_cut(self: TrainingLoop, *arguments: object) -> None:
        if self.progress.epoch == 3:
            raise OSError("power cut")
        begin(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_epoch", power_cut)
        with pytest.raises(OSError, match="power cut"):
            fit_on_balls(config, tmp_path / "cut")
    assert len(rows(tmp_path / "cut")) == 3
    resumed, rest = fit_on_balls(config, tmp_path / "cut", resume=True)
    assert_same(network, resumed)
    assert rest == whole
    assert rows(tmp_path / "cut") == curve


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    fit_on_balls: Fit, short: Quick, straight: tuple, tmp_path: Path
) -> None:
    config, one, _ = straight
    same, _ = fit_on_balls(config, tmp_path / "same", resume=True)  # there is no checkpoint, so it starts anew
    other, _ = fit_on_balls(short("training.seed=1"), tmp_path / "other")
    assert_same(one, same)
    weights = [n.segmentation.mask_decoder.conv_s0.weight for n in (one, other)]
    assert not torch.equal(*weights)


def test_a_new_run_in_the_place_of_an_earlier_one(fit_on_balls: Fit, straight: tuple, tmp_path: Path) -> None:
    config, network, folder = straight
    shutil.copytree(folder, tmp_path / "again")
    states = tmp_path / "again" / "checkpoints"
    saved_states(states)[0].rename(states / "step-00001000.ckpt")
    again, _ = fit_on_balls(config, tmp_path / "again")
    assert_same(network, again)
    assert [step_of(path) for path in saved_states(states)] == [4, 2]


def test_what_a_run_leaves(straight: tuple) -> None:
    _, network, folder = straight
    curve = rows(folder)
    assert [row["step"] for row in curve] == ["2", "4"]
    parts = {"encoder", "srpp", "boundary", "segmentation", "fusion"}
    assert {name for name in curve[0] if name.startswith("gradient/")} == {f"gradient/{part}" for part in parts}
    assert all(float(curve[1][f"gradient/{part}"]) > 0 for part in parts)
    assert [bool(row["position_error/training"]) for row in curve] == [False, True]  # single slices have no positions
    assert float(curve[1]["position_error/validation"]) > 0
    assert {"train/total", "train/dice", "train/bce", "train/relative_position", "train/boundary"} < curve[0].keys()
    assert [bool(row["validation/dice"]) for row in curve] == [False, True]
    assert [path.name for path in (folder / "pictures").iterdir()] == ["epoch_0002.png"]
    best = best_state(folder / "checkpoints")["state_dict"]
    assert all(torch.equal(best[f"network.{name}"], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.long
def test_it_learns_and_keeps_the_best(fit_on_balls: Fit, quick: Quick, tmp_path: Path) -> None:
    config = quick("training.epochs=8", "training.samples_per_epoch=24", "training.batch_size=4")
    _, result = fit_on_balls(config, tmp_path)
    curve = rows(tmp_path)
    assert float(curve[-1]["train/total"]) < 0.7 * float(curve[0]["train/total"])
    validated = [float(row["validation/dice"]) for row in curve if row["validation/dice"]]
    assert len(validated) == 4
    assert result.best_dice == pytest.approx(max(validated))
    assert result.best_dice > 0.5
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "tensorboard").is_dir()


def test_a_frozen_encoder_does_not_move(prepared: tuple, fit_on_balls: Fit, short: Quick, tmp_path: Path) -> None:
    config = short("training.encoder=frozen", "training.epochs=1")
    seed_all(0)
    before = make_model(config, prepared[0], "none")[0].encoder.state_dict()
    network, _ = fit_on_balls(config, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.encoder.state_dict().items())
    assert not network.encoder.training
    assert "gradient/encoder" not in rows(tmp_path)[0]


def test_early_stopping(fit_on_balls: Fit, short: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, as the paper does it; two validations without a better one end it."""
    monkeypatch.setattr("sam2_3dmed.training.trainable.dice", lambda *masks: 0.5)
    settings = ("training.epochs=50", "training.single_slice_fraction=0", "training.samples_per_epoch=1")
    config = short(*settings, "training.validate_every=1", "training.patience=2")
    _, result = fit_on_balls(config, tmp_path)
    assert result.epochs == 3


def test_the_last_epochs_are_validated_too(prepared: tuple, fit_on_balls: Fit, short: Quick, tmp_path: Path) -> None:
    """The only regular validation is after two of three epochs; what comes after it is scored as well."""
    scores: list[float] = []
    config = short("training.epochs=3", "training.learning_rate=1e-3")
    network, result = fit_on_balls(config, tmp_path)
    validated = [float(row["validation/dice"]) for row in rows(tmp_path) if row["validation/dice"]]
    assert len(validated) == 2
    plan, cache = prepared
    predictor = make_predictor(network, make_model(config, plan, "none")[1])
    for case in cache[6:8]:
        classes = predictor.predict_slices(case.image)
        scores += [dice(classes == k, np.asarray(case.label) == k) for k in (1, 2)]
    assert result.best_dice == max(validated)
    assert result.best_dice == pytest.approx(np.mean(scores), abs=1e-6)  # of the very weights it left


def test_ctrl_c_is_an_interruption(
    fit_on_balls: Fit, short: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(TrainingLoop, "_train_epoch", pressed)
    with pytest.raises(KeyboardInterrupt):
        fit_on_balls(short(), tmp_path)
    assert {number: signal.getsignal(number) for number in before} == before
