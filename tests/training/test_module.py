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


@pytest.fixture(scope="module")
def module() -> TrainingModule:
    torch.manual_seed(0)
    network = build_network(size="nano", image_size=64, num_classes=1)
    preprocessing = Preprocessing("axial", (Normalisation("fixed", 0, 1),))
    return TrainingModule(
        network,
        loss=TotalLoss(segmentation="bce", lambda_srpp=0.01, lambda_boundary=0.1),
        predictor=Predictor(network, preprocessing=preprocessing, labels={1: "organ"}, window_slices=3),
        validation=[],
        config=scratch().training,
        total_steps=10,
    )


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
