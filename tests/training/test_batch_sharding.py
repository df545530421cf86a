"""How a batch is divided: every slab once, in equal weight, whoever computes it."""

import pytest
import torch

from sam2_3dmed.config import LossConfig, NetworkConfig
from sam2_3dmed.data.slabs import SampleKey, Slabs, collate
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.training.loader import Division, Part, shares
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.slab_training import training_step


def test_known_parts() -> None:
    """Ten slabs in batches of four over two processes: 4 + 4 + 2."""
    parts = [[Division(10, 4, 1, 2, rank).part(step) for step in range(3)] for rank in range(2)]
    assert parts[0] == [Part(0, 2, 2, 1.0), Part(4, 6, 2, 1.0), Part(8, 9, 1, 1.0)]
    assert parts[1] == [Part(2, 4, 2, 1.0), Part(6, 8, 2, 1.0), Part(9, 10, 1, 1.0)]
    uneven = [Division(5, 5, 1, 2, rank).part(0) for rank in range(2)]
    assert uneven == [Part(0, 2, 2, 0.8), Part(2, 5, 3, 1.2)]  # times 2 processes, over 5 slabs
    assert Division(9, 4, 2).part(1) == Part(2, 4, 2, 1.0)
    assert Division(9, 4, 2).part(4) == Part(8, 9, 0, 0.0)  # one slab for two passes: it stands in for the other
    assert Division(9, 4, 2).part(5) == Part(8, 9, 1, 2.0)


@pytest.mark.parametrize(("slabs", "batch", "grad_accum_steps", "ranks"), [(23, 8, 1, 3), (23, 8, 2, 4), (7, 7, 3, 2)])
def test_every_slab_counts_once_in_every_epoch(slabs: int, batch: int, grad_accum_steps: int, ranks: int) -> None:
    divisions = [Division(slabs, batch, grad_accum_steps, ranks, rank) for rank in range(ranks)]
    assert divisions[0].steps == -(-slabs // batch)
    assert len({len(division) for division in divisions}) == 1
    weights = dict.fromkeys(range(slabs), 0.0)
    for step in range(divisions[0].steps):
        count = min(batch, slabs - step * batch)
        for turn in range(grad_accum_steps):
            for division in divisions:
                part = division.part(step * grad_accum_steps + turn)
                for slab in range(part.start, part.stop):
                    assert step * batch <= slab < step * batch + count
                    # The loop means over passes, DDP over processes, the loss over the part's slabs.
                    weights[slab] += part.weight / (grad_accum_steps * ranks * (part.stop - part.start)) * count
    assert list(weights.values()) == pytest.approx([1.0] * slabs)


def test_a_batch_too_small_to_be_divided() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=4 .* 4 processes and training.grad_accum_steps=2 passes"):
        Division(10, 4, 2, 4)
    with pytest.raises(ConfigError):
        Division(10, 4, 1, 5)
    assert len(Division(10, 5, 3, 2)) == 6  # two slabs for three passes of one of the processes


def test_the_sampler_goes_on_within_an_epoch() -> None:
    """All keys of a batch of one process are those of two, in order; what a resumed run has had is left out."""
    alone, *two = Division(10, 4), Division(10, 4, 1, 2, 0), Division(10, 4, 1, 2, 1)
    for sampler in (alone, *two):
        sampler.move_to(3)
    whole = list(alone)
    assert whole == [a + b for a, b in zip(*two, strict=True)]
    assert whole[2] == [SampleKey(3, 8), SampleKey(3, 9)]
    assert len(alone) == 3
    alone.move_to(3, 2)
    assert list(alone) == whole[2:]
    alone.move_to(3)
    assert list(alone) == whole


def test_shares_of_validation() -> None:
    assert shares([5, 9, 4, 4], 1) == [[0, 1, 2, 3]]
    assert shares([5, 9, 4, 4], 2) == [[0, 2], [1, 3]]  # 9 and 13 slices; dealt from the longest: 9, 5, 4 to 5, 4 to 9
    assert shares([5, 9], 3) == [[0], [1], [0]]  # a process without a volume takes part, too
    assert shares([1, 9, 9], 2)[0].count(0) == 1


def slab(depth: int, seed: int) -> Slabs:
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand(1, depth, 1, 64, 64, generator=generator)
    return Slabs(slices, (slices[:, :, 0] > 0.5).int(), torch.arange(depth).unsqueeze(0))


def test_gradients_of_the_parts_make_that_of_the_batch() -> None:
    """Slabs of unequal length, uneven parts, one that only stands in: their mean is the gradient of one batch."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(size="nano", image_size=64, boundary=False), 1)
    loss = TotalLoss(LossConfig(terms={"dice": 1, "bce": 1, "relative_position": 0.01, "boundary": 0.1}))
    slabs = [slab(depth, seed) for seed, depth in enumerate((2, 1, 2))]

    def gradients(parts: list[tuple[list[Slabs], float]]) -> list[torch.Tensor]:
        network.zero_grad()
        for part, weight in parts:
            (training_step(network, loss, collate(part), 1)["total"] * weight).backward()
        return [p.grad.clone() for p in network.parameters()]

    whole = gradients([(slabs, 1.0)])
    parts = [Division(3, 4, 2, 2, rank).part(turn) for rank in range(2) for turn in range(2)]
    assert sorted(part.counted for part in parts) == [0, 1, 1, 1]
    found = gradients([(slabs[part.start : part.stop], part.weight / len(parts)) for part in parts])
    for gradient, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * (1e-2 + expected.abs().max().item()))
