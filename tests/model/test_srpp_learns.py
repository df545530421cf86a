"""SRPP learns where real slices lie to each other, and not by heart: it is measured on patients it never saw."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_3dmed.model.srpp import SliceRelativePositionPredictor
from sam2_3dmed.training.losses.relative_position import relative_position_loss, relative_positions
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing

DEPTH = 6
PREDICTING_ZERO = 7 / 3  # the mean of |j - i| over the pairs i != j of six slices
STEPS = 200


@pytest.fixture(scope="module")
def volumes(shared_data, nano) -> list[Tensor]:
    """Features (slices, C, h, w) of hippocampus volumes from an encoder of random weights that never learns."""
    encoder = nano(srpp=False, boundary=False).encoder.freeze()
    preprocessing = Preprocessing("axial", (Normalisation("percentiles", 0.5, 99.5),))
    files = sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))[:30]
    slices = [torch.from_numpy(preprocessing.slices(Volume.read(file))).unsqueeze(0) for file in files]
    with torch.no_grad():
        return [encoder(stack).z[0] for stack in slices]


def error_in_slices(srpp: SliceRelativePositionPredictor, volumes: list[Tensor]) -> float:
    """The mean absolute error over the pairs i != j of every slab of every volume."""
    pairs = ~torch.eye(DEPTH, dtype=torch.bool)
    errors = []
    for volume in volumes:
        slabs = torch.stack([volume[start : start + DEPTH] for start in range(len(volume) - DEPTH + 1)])
        target = relative_positions(torch.arange(DEPTH).unsqueeze(0))
        with torch.no_grad():
            errors.append((srpp(slabs)[1] - target).abs()[:, pairs].mean())
    return float(torch.stack(errors).mean())


def draw(volumes: list[Tensor], rng: np.random.Generator, count: int = 8) -> tuple[Tensor, Tensor]:
    """Slabs (count, D, C, h, w), half of them in reverse, and the positions of their slices."""
    slabs, positions = [], []
    for _ in range(count):
        volume = volumes[rng.integers(len(volumes))]
        start = int(rng.integers(len(volume) - DEPTH + 1))
        order = torch.arange(start, start + DEPTH)
        order = order.flip(0) if rng.random() < 0.5 else order
        slabs.append(volume[order])
        positions.append(order)
    return torch.stack(slabs), torch.stack(positions)


@pytest.mark.slow
def test_srpp_learns_the_order_of_unseen_volumes(volumes: list[Tensor]) -> None:
    torch.manual_seed(0)
    held_out, training = volumes[:8], volumes[8:]
    srpp = SliceRelativePositionPredictor(training[0].shape[1])
    assert error_in_slices(srpp, held_out) == pytest.approx(PREDICTING_ZERO, abs=0.2)

    optimizer = torch.optim.AdamW(srpp.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        slabs, positions = draw(training, rng)
        loss = relative_position_loss(srpp(slabs)[1], relative_positions(positions))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(srpp.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert error_in_slices(srpp, held_out) < 0.7 * PREDICTING_ZERO
