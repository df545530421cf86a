"""The schedule by hand; that a batch of unequal windows weighs every window alike."""

import math

import pytest
import torch

from sam2_3dmed.config import scratch
from sam2_3dmed.data.windows import Windows, collate
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.module import TrainingModule, learning_rate_factor
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing


@pytest.mark.parametrize(
    ("step", "warmup", "final", "expected"),
    [
        (0, 0.0, 0.1, 1.0),
        (50, 0.0, 0.1, 0.55),
        (100, 0.0, 0.1, 0.1),
        (250, 0.0, 0.1, 0.1),  # beyond the end it stays there
        (25, 0.0, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),
        (0, 0.1, 1.0, 0.1),
        (4, 0.1, 1.0, 0.5),
        (9, 0.1, 1.0, 1.0),
        (60, 0.1, 1.0, 1.0),
    ],
)
def test_learning_rate(step: int, warmup: float, final: float, expected: float) -> None:
    assert learning_rate_factor(step, 100, warmup, final) == pytest.approx(expected)


def make_module(encoder_fraction: float = 0, frozen: bool = False) -> TrainingModule:
    torch.manual_seed(0)
    network = build_network(size="nano", image_size=64, num_classes=1)
    if frozen:
        network.encoder.freeze()
    preprocessing = Preprocessing("axial", (Normalisation("fixed", 0, 1),))
    config = scratch().training.model_copy(update={"epochs": 4, "encoder_fraction": encoder_fraction})
    return TrainingModule(
        network,
        loss=TotalLoss(segmentation="bce", lambda_srpp=0.01, lambda_boundary=0.1),
        predictor=Predictor(network, preprocessing=preprocessing, labels={1: "organ"}, window_slices=3),
        validation=[],
        config=config,
        steps_per_epoch=5,
    )


@pytest.fixture(scope="module")
def module() -> TrainingModule:
    return make_module()


def window(depth: int, seed: int) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand(1, depth, 1, 64, 64, generator=generator)
    return Windows(slices, (slices[:, :, 0] > 0.5).int(), torch.arange(depth).unsqueeze(0))


def test_windows_of_unequal_length_weigh_alike(module: TrainingModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", lambda *args, **options: None)
    monkeypatch.setattr(module, "optimizers", lambda: torch.optim.SGD(module.parameters(), lr=1.0))
    windows = [window(3, 0), window(2, 1), window(3, 2)]
    with torch.no_grad():
        together = module.training_step(collate(windows), 0)
        alone = [module.training_step(collate([w]), 0) for w in windows]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 3, rel=1e-5)


def test_the_encoder_learns_alone_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(encoder_fraction=0.8)
    monkeypatch.setattr(module, "log", lambda *args, **options: None)
    monkeypatch.setattr(module, "optimizers", lambda: torch.optim.SGD(module.parameters(), lr=1.0))
    module.training_step(collate([window(3, 0)]), 0).backward()
    reached = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None
    }
    assert reached == {"network.encoder", "encoder_head.levels", "encoder_head.classes"}
    assert all(p.grad is not None for p in module.encoder_head.parameters())
    module.validation_step(0, 0)  # there is no case 0: the decoders are not asked
    assert module._dice == [[0.0]]


def test_then_all_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(encoder_fraction=0.8)
    monkeypatch.setattr(module, "log", lambda *args, **options: None)
    monkeypatch.setattr(module, "optimizers", lambda: torch.optim.SGD(module.parameters(), lr=1.0))
    monkeypatch.setattr(TrainingModule, "global_step", 15)
    module.training_step(collate([window(3, 0)]), 0).backward()
    assert all(p.grad is None for p in module.encoder_head.parameters())
    assert all(p.grad is not None for p in module.network.encoder.parameters())
    assert all(p.grad is not None for p in module.network.segmentation.memory_attention.parameters())


def test_each_part_of_the_run_has_its_own_schedule() -> None:
    module = make_module(encoder_fraction=0.8)  # 15 steps, then 5
    rate = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert rate(14) == pytest.approx(learning_rate_factor(14, 15, 0.05, 0.1))
    assert [rate(15 + step) for step in range(5)] == [learning_rate_factor(step, 5, 0.05, 0.1) for step in range(5)]


def test_a_frozen_encoder_needs_no_epochs_of_its_own() -> None:
    module = make_module(encoder_fraction=0.8, frozen=True)
    assert module.encoder_head is None
    assert (module.encoder_steps, module.joint_steps) == (0, 20)
    assert not module.encoder_trains_alone
