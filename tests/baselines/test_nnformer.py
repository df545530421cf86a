"""The published sizes, the shapes of all outputs, and that everything learns."""

import pytest
import torch

from sam2_3dmed.baselines.nnformer import Down, NNFormer

SMALL = {"patch": (16, 32, 64), "stride": (2, 4, 4), "width": 16, "heads": (1, 2, 2, 4), "windows": (4, 4, 8, 4)}


@pytest.mark.parametrize(
    ("arguments", "millions"),
    [
        (((64, 128, 128), (2, 4, 4), 192, (6, 12, 24, 48)), 149.6),
        (((128, 128, 128), (4, 4, 4), 96, (3, 6, 12, 24)), 37.6),
    ],
)
def test_parameters_of_the_paper(arguments: tuple, millions: float) -> None:
    with torch.device("meta"):
        network = NNFormer(1, 3, *arguments, windows=(4, 4, 8, 4))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.fixture(scope="module")
def network() -> NNFormer:
    torch.manual_seed(0)
    return NNFormer(2, 3, **SMALL)


def test_three_outputs_in_training_and_one_else(network: NNFormer) -> None:
    image = torch.randn(2, 2, 16, 32, 64)
    outputs = network.train()(image)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, 16, 32, 64), (2, 3, 8, 16, 32), (2, 3, 4, 8, 16)]
    network.zero_grad()
    sum(output.square().mean() for output in outputs).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        assert network.eval()(image).shape == (2, 3, 16, 32, 64)


def test_a_batch_equals_its_cases(network: NNFormer) -> None:
    image = torch.randn(2, 2, 16, 32, 64)
    with torch.no_grad():
        together = network.eval()(image)
        alone = torch.cat([network(one[None]) for one in image])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_voxel_reaches_every_other(network: NNFormer) -> None:
    """By the global attention at the bottom."""
    image = torch.randn(1, 2, 16, 32, 64, requires_grad=True)
    network.eval()(image)[0, 1, 0, 0, 0].backward()
    assert image.grad[0, :, -1, -1, -1].any()


def test_paths_that_are_left_out_are_made_up_for(network: NNFormer) -> None:
    block = network.encoder[-1][-1]
    torch.manual_seed(0)
    kept = block.train()._kept(torch.ones(10_000, 1, 1, 1, 1))
    assert block.drop == 0.2
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    network.eval()
    assert block._kept(torch.ones(3, 1, 1, 1, 1)).eq(1).all()


def test_a_patch_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match=r"a patch of \(16, 32, 48\) is no multiple of 8 strides"):
        NNFormer(1, 2, **SMALL | {"patch": (16, 32, 48)})


def test_bf16_on_a_cpu_gives_numbers() -> None:
    """Whatever memory held before; a convolution of torch reads some of it for volumes of this size."""
    torch.manual_seed(0)
    down, tokens = Down(128), torch.randn(2, 2, 4, 2, 128)
    for size in range(100_000, 100_600, 37):
        rubbish = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for _ in range(4)]
        del rubbish
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert down(tokens).isfinite().all()
