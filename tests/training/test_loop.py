"""Single steps, and trials that leave no trace."""

import itertools
from pathlib import Path

import pytest
import torch

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.sam2_model import make_predictor
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.slab_training import SlabTraining, assemble_slabs
from sam2_3dmed.training.trainable import Learner, check_gradients
from sam2_3dmed.training.trials import find_rate, seconds_a_pass, trial


@pytest.fixture(scope="module")
def fabric():
    return DistributedContext().launch()


@pytest.fixture(scope="module")
def assembled(prepared: tuple, short) -> SlabTraining:
    plan, cache = prepared
    config = short()
    network, record = make_model(config, plan, "none")
    return assemble_slabs(make_predictor(network, record), cache, cache, config, Path("none"), DistributedContext())


def test_weights_come_back(assembled, fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = assembled
    before = {name: tensor.clone() for name, tensor in trainable.network.state_dict().items()}
    monkeypatch.chdir(tmp_path)
    with trial(trainable, fabric, check_gradients) as passes:
        taken = itertools.count()
        counted = (next(taken) for _ in passes)
        assert seconds_a_pass(counted, 0, fabric) > 0  # enough for the limit, but not fewer than three
        assert next(taken) == 3
        assert any(not torch.equal(before[n], t) for n, t in trainable.network.state_dict().items())
        assert trainable.progress.epoch == 1  # of two steps each
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable.network.state_dict().items())
    assert trainable.means.compute() == {}
    assert (trainable.progress.epoch, trainable.progress.step) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_test_ends_where_the_loss_explodes(assembled, fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = assembled
    monkeypatch.setattr("sam2_3dmed.training.trials._STEPS", 6)
    before = {name: tensor.clone() for name, tensor in trainable.network.state_dict().items()}
    test = find_rate(trainable, fabric)
    assert 2 <= len(test.rates) <= 6
    assert test.rates[0] == 1e-7
    ratios = [b / a for a, b in itertools.pairwise(test.rates)]
    assert ratios == pytest.approx([1e7 ** (1 / 5)] * len(ratios))
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable.network.state_dict().items())


@pytest.mark.parametrize("clip", [None, 2.0, 1e9])
def test_gradients_are_clipped_by_their_common_norm(make_module, fabric, clip: float | None) -> None:
    trainable = make_module(clip_gradient_norm=clip, learning_rate=1e-3)
    norms: list[torch.Tensor] = []

    def norm() -> torch.Tensor:
        return torch.stack([p.grad.norm() for p in trainable.parameters()]).norm()

    learner = Learner(trainable, fabric, lambda learner: norms.append(norm()))
    for parameter in trainable.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner._step()
    expected = norms[0].item() if clip is None else min(clip, norms[0].item())
    assert norm().item() == pytest.approx(expected, rel=1e-4)
    assert trainable.progress.step == 1


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(make_module, fabric, wrong: str) -> None:
    trainable = make_module()
    trainable.latest = {
        "total": torch.ones(()),
        "boundary": torch.tensor(float("nan") if wrong == "loss" else 0.0),
    }
    for parameter in trainable.network.encoder.parameters():
        parameter.grad = torch.full_like(parameter, float("inf") if wrong == "gradient" else 1.0)
    trainable.progress.epoch, trainable.progress.step = 2, 11
    found = "boundary loss nan" if wrong == "loss" else "encoder gradient inf"
    with pytest.raises(TrainingError, match=f"^epoch 3, step 12: not finite: {found}; the checkpoints are from before"):
        check_gradients(Learner(trainable, fabric, check_gradients))
