"""What adapts and what stays: gradients, modes, and that merged adapters are a plain encoder again."""

import importlib.util

import pytest
import torch
from torch import nn

from sam2_3dmed.encoders.peft_adapters import NEEDS_THE_EXTRA, add_lora, merge_lora, require_lora, train_last_stage
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.network import SAM2For3dMed

LAST_STAGE = ("backbone.blocks.4.", "neck.convs.0.", "neck.convs.1.")  # of nano, which has 1, 1, 2 and 1 blocks


@pytest.fixture
def lora(nano) -> SAM2For3dMed:
    network = nano()
    add_lora(network.encoder, rank=4)
    return network


def adapters(network: SAM2For3dMed) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.encoder.vision_encoder.named_parameters() if ".lora_" in name}


def move(network: SAM2For3dMed) -> None:
    """As training would: B is zero at first."""
    with torch.no_grad():
        for parameter in adapters(network).values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))


def taught(network: SAM2For3dMed, slices: torch.Tensor) -> set[str]:
    """The names of the encoder's parameters that a backward pass reaches with more than zeros."""
    prediction = network(slices)
    (prediction.segmentation.square().mean() + prediction.boundary.square().mean()).backward()
    named = network.encoder.vision_encoder.named_parameters()
    return {name for name, parameter in named if parameter.grad is not None and parameter.grad.any()}


def training_modules(network: SAM2For3dMed) -> set[str]:
    """The modules of the encoder in training mode that hold parameters of their own."""
    modules = network.encoder.vision_encoder.named_modules()
    return {name for name, module in modules if module.training and list(module.parameters(recurse=False))}


def test_fresh_adapters_change_nothing(nano, slab) -> None:
    network = nano()
    with torch.no_grad():
        plain = network.encoder(slab())
        add_lora(network.encoder, rank=4)
        adapted = network.encoder(slab())
    for before, after in zip(plain, adapted, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_the_adapters_are_those_of_all_attention(lora) -> None:
    expected = {
        f"backbone.blocks.{block}.attn.{linear}.lora_{matrix}.default.weight"
        for block in range(5)
        for linear in ("qkv", "proj")
        for matrix in "AB"
    }
    assert adapters(lora).keys() == expected
    matrix = adapters(lora)["backbone.blocks.0.attn.qkv.lora_A.default.weight"]
    assert matrix.shape == (4, 24)


def test_every_adapter_has_its_say(nano, lora, slab) -> None:
    """Were a weight read past its module anywhere, its adapter would do nothing."""
    slices = slab(depth=2)
    z = nano().encoder(slices).z
    for name, parameter in adapters(lora).items():
        if ".lora_B." in name:
            with torch.no_grad():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
                assert (lora.encoder(slices).z - z).abs().max() > 1e-4, name
                parameter.zero_()


def test_of_the_encoder_only_the_adapters_learn(lora, slab) -> None:
    move(lora)
    assert taught(lora.train(), slab()) == adapters(lora).keys()
    rest = [p for name, p in lora.encoder.named_parameters() if ".lora_" not in name]
    assert not any(p.requires_grad or p.grad is not None for p in rest)


def test_of_the_encoder_only_the_adapters_are_in_training_mode(lora) -> None:
    lora.train()
    assert training_modules(lora) == {name.removesuffix(".weight") for name in adapters(lora)}
    assert not lora.encoder.frozen
    lora.eval()
    assert not training_modules(lora)


def test_merged_adapters_are_a_plain_frozen_encoder_with_the_same_features(nano, lora, slab) -> None:
    move(lora)
    slices = slab()
    with torch.no_grad():
        adapted = lora.encoder(slices)
    merge_lora(lora.encoder)
    plain = nano(seed=1)
    plain.load_state_dict(lora.state_dict(), strict=True)
    for level, expected in zip(plain.encoder(slices), adapted, strict=True):
        torch.testing.assert_close(level, expected, atol=2e-5, rtol=1e-5)
    assert (nano().encoder(slices).z - adapted.z).abs().max() > 0.1
    assert lora.encoder.frozen
    assert not any(p.requires_grad for p in lora.encoder.parameters())
    lora.train()
    assert not training_modules(lora)


def test_lora_without_peft_names_the_extra(nano, monkeypatch: pytest.MonkeyPatch) -> None:
    require_lora()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        add_lora(nano().encoder, rank=4)
    assert str(caught.value) == NEEDS_THE_EXTRA


def test_the_last_stage_learns_and_nothing_before_it(nano, slab) -> None:
    network = nano().train()
    train_last_stage(network.encoder)
    expected = {name for name, _ in network.encoder.vision_encoder.named_parameters() if name.startswith(LAST_STAGE)}
    assert taught(network, slab()) == expected
    left = {name: p for name, p in network.encoder.vision_encoder.named_parameters() if name not in expected}
    assert len(left) > 30
    assert not any(p.requires_grad or p.grad is not None for p in left.values())


def test_the_last_stage_is_in_training_mode_and_nothing_before_it(nano) -> None:
    network = nano()
    train_last_stage(network.encoder)
    network.train()
    named = network.encoder.vision_encoder.named_parameters()
    assert training_modules(network) == {n.rpartition(".")[0] for n, _ in named if n.startswith(LAST_STAGE)}
    assert not network.encoder.frozen


def test_nothing_is_kept_for_gradients_before_the_last_stage(nano, slab) -> None:
    """That is what it saves beside the arithmetic: activations of the frozen stages."""
    network = nano()
    blocks = network.encoder.vision_encoder.backbone.blocks
    kept: dict[int, bool] = {}
    for number, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda _, __, output, n=number: kept.update({n: output.requires_grad}))
    train_last_stage(network.encoder)
    features = network.encoder(slab())
    assert kept == {0: False, 1: False, 2: False, 3: False, 4: True}
    assert [level.requires_grad for level in features] == [True, False, False]
