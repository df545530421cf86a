"""The training contract: it learns, it repeats, it resumes exactly, and what is frozen stays frozen."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import CaseCache, build_cache
from sam2_3dmed.data.catalog import read_catalog
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.first_weights import make_model
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.runs import make_predictor
from sam2_3dmed.training.fit import FitResult, fit
from sam2_3dmed.training.module import TrainingModule
from sam2_3dmed.training.trainer import seed_everything

Quick = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def prepared(blobs: Path, cache_folder: Path) -> tuple:
    catalog = read_catalog(blobs)
    plan = propose_plan(fingerprint(catalog))
    return plan, build_cache(catalog, plan, cache_folder)


def run(prepared: tuple, config: RunConfig, folder: Path, resume: bool = False) -> tuple[SAM2For3dMed, FitResult]:
    plan, cache = prepared
    seed_everything(config.training.seed)
    network, record = make_model(config, plan, "none")
    cases = cache.cases
    result = fit(
        network,
        make_predictor(network, record),
        training=CaseCache(cases[:6]),
        validation=CaseCache(cases[6:8]),
        config=config,
        folder=folder,
        resume=resume,
    )
    return network, result


def assert_same(one: SAM2For3dMed, other: SAM2For3dMed) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_resumed_run_equals_an_uninterrupted_one(
    prepared: tuple, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float | None
) -> None:
    config = quick(f"training.weight_average={'null' if average is None else average}")
    straight, whole = run(prepared, config, tmp_path / "straight")

    def power_cut(self: TrainingModule) -> None:
        if self.current_epoch == 2:
            raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
        with pytest.raises(OSError, match="power cut"):
            run(prepared, config, tmp_path / "cut")
    assert len(rows(tmp_path / "cut")) == 2
    resumed, rest = run(prepared, config, tmp_path / "cut", resume=True)

    assert_same(straight, resumed)
    assert rest == whole
    assert rows(tmp_path / "cut") == rows(tmp_path / "straight")


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    prepared: tuple, quick: Quick, tmp_path: Path
) -> None:
    config = quick("training.epochs=1", "training.validate_every=1")
    one, _ = run(prepared, config, tmp_path / "one")
    same, _ = run(prepared, config, tmp_path / "same")
    other, _ = run(prepared, quick("training.epochs=1", "training.seed=1"), tmp_path / "other")
    assert_same(one, same)
    weights = [n.segmentation.mask_decoder.conv_s0.weight for n in (one, other)]
    assert not torch.equal(*weights)


@pytest.mark.long
def test_it_learns_and_keeps_the_best(prepared: tuple, quick: Quick, tmp_path: Path) -> None:
    config = quick("training.epochs=8", "training.windows_per_epoch=24", "training.batch_size=4")
    _, result = run(prepared, config, tmp_path)
    curve = rows(tmp_path)
    assert float(curve[-1]["train/total"]) < 0.7 * float(curve[0]["train/total"])
    validated = [float(row["validation/dice"]) for row in curve if row["validation/dice"]]
    assert len(validated) == 4
    assert result.best_dice == pytest.approx(max(validated))
    assert result.best_dice > 0.5
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "tensorboard").is_dir()


def test_a_frozen_encoder_does_not_move(prepared: tuple, quick: Quick, tmp_path: Path) -> None:
    config = quick("model.train_encoder=false", "training.epochs=1")
    seed_everything(0)
    before = make_model(config, prepared[0], "none")[0].encoder.state_dict()
    network, _ = run(prepared, config, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.encoder.state_dict().items())
    assert not network.encoder.training


def test_early_stopping(prepared: tuple, quick: Quick, tmp_path: Path) -> None:
    """A rate of nearly zero improves nothing, so two validations without a better one end it."""
    config = quick(
        "training.epochs=50", "training.validate_every=1", "training.patience=2", "training.learning_rate=1e-12"
    )
    _, result = run(prepared, config, tmp_path)
    assert result.epochs == 3


def test_a_run_that_stopped_before_its_first_checkpoint_starts_anew(
    prepared: tuple, quick: Quick, tmp_path: Path
) -> None:
    config = quick("training.epochs=1")
    one, _ = run(prepared, config, tmp_path / "one")
    other, _ = run(prepared, config, tmp_path / "other", resume=True)
    assert_same(one, other)


def test_the_last_epochs_are_validated_too(prepared: tuple, quick: Quick, tmp_path: Path) -> None:
    """Two of three epochs lie before the only regular validation; what comes after it is scored as well."""
    scores: list[float] = []
    config = quick("training.epochs=3", "training.validate_every=2", "training.learning_rate=1e-3")
    network, result = run(prepared, config, tmp_path)
    regular = max(float(row["validation/dice"]) for row in rows(tmp_path) if row["validation/dice"])
    plan, cache = prepared
    predictor = make_predictor(network, make_model(config, plan, "none")[1])
    for case in cache.cases[6:8]:
        classes = predictor.predict_slices(case.image)
        scores += [dice(classes == k, np.asarray(case.label) == k) for k in (1, 2)]
    assert result.best_dice >= regular
    assert result.best_dice == pytest.approx(np.mean(scores), abs=1e-6)  # of the very weights it left


def test_ctrl_c_is_an_interruption(
    prepared: tuple, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self: TrainingModule) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, quick(), tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
