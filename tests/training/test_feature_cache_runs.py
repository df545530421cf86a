"""Whole runs with a feature cache: they resume exactly, and learn what they learn without it."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.sam2_model import make_predictor
from sam2_3dmed.run.sam2_run import Sam2Run
from sam2_3dmed.training.distributed import DistributedContext, seed_all
from sam2_3dmed.training.loop import TrainingLoop

PER_SLICE = 4 * 4 * 64 + 8 * 8 * 48 + 16 * 16 * 24
"""Numbers of a slice of nano at 64 pixels."""
Quick = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def prepared(blobs: Path, cache_folder: Path) -> tuple:
    catalog = read_dataset(blobs)
    plan = propose_plan(fingerprint(catalog))
    return plan, build_cache(catalog, plan, cache_folder)


class TestRuns:
    CACHED = ("training.encoder=frozen", "feature_cache.views=2", "feature_cache.refresh=2")

    def run(self, prepared: tuple, config: RunConfig, folder: Path, resume: bool = False) -> SAM2For3dMed:
        plan, cases = prepared
        seed_all(0)
        network, record = make_model(config, plan, "none")
        parts = make_predictor(network, record), cases[:6], cases[6:7]
        Sam2Run(record, *parts, folder, DistributedContext()).fit(resume=resume)
        return network

    def test_a_resumed_run_equals_an_uninterrupted_one(
        self, prepared: tuple, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With some features in memory, which the power cut takes, and some on disk, which the second part finds."""
        config = quick(*self.CACHED, f"feature_cache.budget_gb={10 * PER_SLICE * 2 / 1e9}")
        straight = self.run(prepared, config, tmp_path / "straight")

        begin = TrainingLoop._train_epoch

        def power_cut(self: TrainingLoop, *arguments: object) -> None:
            if self.progress.epoch == 2:
                raise OSError("power cut")
            begin(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_train_epoch", power_cut)
            with pytest.raises(OSError, match="power cut"):
                self.run(prepared, config, tmp_path / "cut")
        assert (tmp_path / "cut" / "features").exists()
        resumed = self.run(prepared, config, tmp_path / "cut", resume=True)
        for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        assert not (tmp_path / "cut" / "features").exists()
        losses = []
        for folder in ("straight", "cut"):
            with (tmp_path / folder / "curves.csv").open(newline="") as file:
                losses.append([row["train/total"] for row in csv.DictReader(file)])
        assert losses[0] == losses[1]
        assert len(losses[0]) == 4

    def test_it_changes_what_is_seen_and_nothing_else(self, prepared: tuple, quick: Quick, tmp_path: Path) -> None:
        """Without augmentation a view is the case itself: kept in fp32, training is what it is without a cache."""
        plain = [f"augmentation.{name}=0" for name in ("horizontal_flip", "affine", "noise", "blur", "reverse")]
        settings = (*plain, "training.encoder=frozen", "training.epochs=2", "training.foreground_fraction=0")
        without = self.run(prepared, quick(*settings), tmp_path / "without")
        cached = quick(*settings, "feature_cache.views=1", "feature_cache.dtype=fp32")
        with_it = self.run(prepared, cached, tmp_path / "with")
        for (name, a), b in zip(without.state_dict().items(), with_it.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=name)

    def test_an_encoder_that_trains_is_an_error_before_anything_starts(
        self, prepared: tuple, quick: Quick, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="feature_cache"):
            self.run(prepared, quick("feature_cache.views=2"), tmp_path / "run")
        assert not (tmp_path / "run").exists()
