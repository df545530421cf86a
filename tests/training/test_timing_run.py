"""Steps that leave no trace."""

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.sam2_run import make_predictor
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.fit import _assemble
from sam2_3dmed.training.lr_finder import find_rate
from sam2_3dmed.training.timing_run import Stopwatch, try_steps
from sam2_3dmed.training.trainer import quiet_lightning


@pytest.fixture(scope="module")
def assembled(prepared: tuple, short) -> tuple:
    """A module, its loader and its recipe."""
    plan, cache = prepared
    config = short()
    network, record = make_model(config, plan, "none")
    parts = network, make_predictor(network, record), cache, cache, config, Path("none"), DistributedContext()
    return *_assemble(*parts), config


class Watch(Callback):
    """Notes that the weights did change meanwhile."""

    def __init__(self, before: dict[str, torch.Tensor]) -> None:
        self.before = before
        self.changed = False
        self.single_slices: list[bool] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *more: object
    ) -> None:
        self.single_slices.append(pl_module.sees_single_slices)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.changed = any(not torch.equal(self.before[n], t) for n, t in pl_module.network.state_dict().items())


def test_weights_come_back(assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loader, config = assembled
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    watch, stopwatch = Watch(before), Stopwatch([False, True], limit_seconds=0, most=20)
    monkeypatch.chdir(tmp_path)
    with quiet_lightning():
        try_steps(module, loader, config.training, [watch, stopwatch], -1)
    assert watch.changed
    assert watch.single_slices == [False] * 3 + [True] * 3  # enough for the limit, but not fewer
    assert len(stopwatch.seconds) == 2
    assert min(stopwatch.seconds) > 0
    assert module.single_slice_steps == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())
    assert module.means.compute() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_rate_test_ends_where_the_loss_explodes(assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loader, config = assembled
    monkeypatch.setattr("sam2_3dmed.training.lr_finder._STEPS", 6)
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    with quiet_lightning():
        test = find_rate(module, loader, config)
    assert 2 <= len(test.rates) <= 6
    assert test.rates[0] == 1e-7
    ratios = [b / a for a, b in zip(test.rates, test.rates[1:], strict=False)]
    assert ratios == pytest.approx([1e7 ** (1 / 5)] * len(ratios))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())
