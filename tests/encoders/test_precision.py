"""bf16 where it is fast; in a prediction in bf16, some parts in float32 all the same."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.encoders.precision import bf16_is_fast, in_float32, pad_short_stacks
from sam2_3dmed.model.network import SAM2For3dMed

bf16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.mark.parametrize("amx", [False, True])
def test_a_processor_needs_amx(monkeypatch, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_is_fast("cpu") == bf16_is_fast(torch.device("cpu")) == amx


def test_a_gpu_must_not_emulate_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not bf16_is_fast("cuda:1")


def test_float32_in_a_prediction_in_bf16_and_there_alone() -> None:
    layer = nn.Linear(3, 3)
    rough = torch.ones(2, 3, dtype=torch.bfloat16)
    expected = layer(rough.float())
    with torch.inference_mode(), bf16():
        assert layer(rough).dtype == torch.bfloat16
        assert torch.equal(in_float32(layer, rough), expected)
        assert torch.is_autocast_enabled("cpu")
    with torch.no_grad(), bf16():
        assert in_float32(layer, rough).dtype == torch.bfloat16
    with torch.inference_mode():
        assert in_float32(lambda x: x, rough) is rough


def test_which_parts_keep_float32(nano, slab) -> None:
    """Products are where digits go: of these parts none is in bf16, of the others every one."""
    network: SAM2For3dMed = nano()
    seen = types_of_products(network)
    with torch.inference_mode(), bf16():
        network(slab(depth=2))
    backbone = "encoder.vision_encoder.backbone"
    for name, dtype in seen.items():
        kept = f"{backbone}.patch_embed." in name or ".mask_decoder." in name
        assert dtype == (torch.float32 if kept else torch.bfloat16), name
    assert {f"{backbone}.patch_embed.projection", f"{backbone}.blocks.1.attn.qkv"} < seen.keys()
    assert {"segmentation.mask_decoder.upscale_conv2", "boundary.decoder.memory_encoder.projection"} < seen.keys()

    with torch.inference_mode(), bf16():
        assert {stage.dtype for stage in network.encoder.vision_encoder._stages(torch.rand(1, 3, 64, 64))} == {
            torch.float32
        }
        features = network.encoder(slab(depth=1))
        assert {level.dtype for level in (*features, *network.project(features)) if level is not None} == {
            torch.float32
        }


def types_of_products(network: nn.Module) -> dict[str, torch.dtype]:
    """Filled when the network runs: what each linear map and convolution gives, by its name."""
    seen: dict[str, torch.dtype] = {}

    def note(module: nn.Module, given: object, output: Tensor, name: str) -> None:
        seen[name] = output.dtype

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(partial(note, name=name))
    return seen


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_gradient_of_a_short_stack(depth: int) -> None:
    """Of the weights of a 3D convolution in bf16; torch leaves a part of it unfilled at 2 slices."""
    torch.manual_seed(0)
    convolution = nn.Conv3d(32, 32, 3, padding=1)
    x, weight = torch.randn(1, 32, depth, 8, 8), torch.randn(1, 32, depth, 8, 8)

    def gradient() -> Tensor:
        return torch.autograd.grad((convolution(x) * weight).sum(), convolution.weight)[0]

    expected = gradient()
    pad_short_stacks(convolution)
    with bf16():
        for _ in range(4):
            unfilled = [torch.full((size,), float("nan")) for size in (100, 10_000, 30_000, 1_000_000)]
            del unfilled
            torch.testing.assert_close(gradient(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
