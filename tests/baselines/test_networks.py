"""What is planned for a system can be built, learns at all sizes, and has the published number of parameters."""

from typing import Any

import pytest
import torch

from sam2_3dmed.baselines import networks
from sam2_3dmed.baselines.grid import Grid
from sam2_3dmed.baselines.networks import all_logits, outline, plan_network
from sam2_3dmed.baselines.recipe import PatchSpec
from sam2_3dmed.run.systems import find_system


def build(system: str, arguments: dict[str, Any]) -> torch.nn.Module:
    return networks.build(PatchSpec.model_construct(system=system, network=arguments))


def planned(system: str, grid: Grid, *settings: str, on_gpu: bool = False) -> tuple[tuple, dict[str, Any]]:
    config = find_system(system).recipe(settings=settings)
    return plan_network(config, outline(config, [grid], num_channels=1, num_classes=2, on_gpu=on_gpu))


HIPPOCAMPUS = Grid((36, 50, 35), (1.0, 1.0, 1.0))
THICK_CT = Grid((90, 512, 512), (5.0, 0.8, 0.8))
BALL = Grid((7, 28, 24), (3.0, 1.5, 1.5))


MEDNEXT = {"s": (5.6, 0), "b": (10.5, 0), "m": (17.6, 15_456), "l": (61.8, 52_512)}
"""Millions of parameters in the paper; how many MONAI's has fewer than the authors' code (see the manual)."""


def mednext(variant: str, kernel: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and MONAI's."""
    from monai.networks.nets.mednext import create_mednext

    arguments = planned(f"mednext_{variant}", THICK_CT, f"model.kernel={kernel}", on_gpu=True)[1]
    with torch.device("meta"):
        ours = build(f"mednext_{variant}", arguments)
        return ours, create_mednext(variant, out_channels=3, kernel_size=kernel, deep_supervision=True)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("variant", MEDNEXT)
def test_mednext_is_that_of_monai(variant: str, kernel: int) -> None:
    ours, theirs = mednext(variant, kernel)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    outputs = all_logits(ours.train()(torch.empty(1, 1, 32, 64, 64, device="meta")))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 32 >> n, 64 >> n, 64 >> n) for n in range(5)]


@pytest.mark.parametrize("variant", MEDNEXT)
def test_mednext_has_the_papers_number_of_parameters(variant: str) -> None:
    millions, fewer = MEDNEXT[variant]
    count = sum(p.numel() for p in mednext(variant, 3)[0].parameters())
    assert (count + fewer) / 1e6 == pytest.approx(millions, abs=0.05)


def test_unet_is_planned_as_nnunet_does() -> None:
    patch, arguments = planned("unet", HIPPOCAMPUS, on_gpu=True)
    assert patch == (40, 56, 40)
    assert arguments["filters"] == [32, 64, 128, 256]
    patch, arguments = planned("unet", THICK_CT, on_gpu=True)
    assert arguments["filters"] == [32, 64, 128, 256, 320, 320]
    assert arguments["strides"][:3] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    _, arguments = planned("unet", HIPPOCAMPUS, "model.width=16", "model.patch=[32, 48, 32]")
    assert arguments["filters"] == [16, 32, 64, 128]


def test_nnformer_is_planned_as_published() -> None:
    patch, arguments = planned("nnformer", THICK_CT, on_gpu=True)
    assert (arguments["stride"], arguments["width"], arguments["heads"]) == ([2, 4, 4], 192, [6, 12, 24, 48])
    patch, arguments = planned("nnformer", Grid((160, 200, 160), (1.0, 1.0, 1.0)), on_gpu=True)
    assert (patch, arguments["width"], arguments["heads"]) == ((128, 128, 128), 96, [3, 6, 12, 24])


@pytest.mark.parametrize("system", ["unet", "mednext_s", "nnformer"])
@pytest.mark.parametrize("grid", [HIPPOCAMPUS, THICK_CT, BALL])
def test_small_patches_fit_the_median_case(system: str, grid: Grid) -> None:
    patch, arguments = planned(system, grid)
    multiple = {"unet": 8, "mednext_s": 16, "nnformer": 32}[system]
    assert all(side < max(size + multiple, 2 * multiple + 1) for side, size in zip(patch, grid.shape, strict=True))
    assert patch[0] * patch[1] * patch[2] <= 64**3
    with torch.device("meta"):
        network = build(system, arguments).eval()
        assert network(torch.empty(1, 1, *patch)).shape == (1, 3, *patch)


@pytest.mark.parametrize(("system", "num_sizes"), [("unet", 2), ("mednext_s", 5), ("nnformer", 3)])
def test_supervision_reaches_every_weight(system: str, num_sizes: int) -> None:
    torch.manual_seed(0)
    patch, arguments = planned(system, BALL)
    network = build(system, arguments).train()
    outputs = all_logits(network(torch.randn(2, 1, *patch)))
    assert len(outputs) == num_sizes
    assert outputs[0].shape == (2, 3, *patch)
    sum(output.square().mean() for output in outputs).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
