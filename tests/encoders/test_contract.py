"""What every image encoder must do; a new one is tested by its line in the registry."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sam2_3dmed.config import ChannelPlan, Plan, paper, with_settings
from sam2_3dmed.encoders.peft_adapters import add_lora, merge_lora, train_last_stage
from sam2_3dmed.encoders.registry import ENCODERS, Encoder, find_encoder
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.export.run import EncoderGraph, encoder_onnx
from sam2_3dmed.run.build_model import check_model, make_model
from sam2_3dmed.run.run_folder import load_model, save_model
from sam2_3dmed.training.feature_cache import require_frozen

PLAN = Plan(
    dataset="Test", channels=(ChannelPlan(name="CT", normalisation="fixed", low=0, high=1),), labels={1: "liver"}
)


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return find_encoder(request.param).build("nano", 64, 128)


@pytest.fixture(params=ENCODERS)
def network(request: pytest.FixtureRequest, nano):
    return nano(encoder=request.param)


def test_levels_have_strides_4_8_16_and_the_channels(encoder: Encoder) -> None:
    levels = encoder(torch.randn(3, 3, 64, 64))
    assert encoder.channels == 128
    assert [tuple(level.shape) for level in levels] == [(3, 128, side, side) for side in (16, 8, 4)]
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)
    assert min(level.std() for level in levels) > 0.01


def test_each_slice_is_encoded_on_its_own(network, slab) -> None:
    slices = slab(batch=2, depth=3)
    for mode in (False, True):
        encoder = network.encoder.train(mode)
        for level, alone in zip(encoder(slices), encoder(slices[1:, 2:]), strict=True):
            torch.testing.assert_close(level[1:, 2:], alone, atol=1e-4, rtol=1e-4)


def test_laterals_make_levels_of_the_features_before_them(encoder: Encoder) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found, expected = encoder.pre_fpn_features(pixels), encoder(pixels)
        for number, (level, other) in enumerate(zip(found, expected, strict=True)):
            lateral = encoder.lateral(number)
            level = level if lateral is None else F.conv2d(level, lateral.weight, lateral.bias)
            torch.testing.assert_close(level, other, atol=1e-4, rtol=1e-4)
    assert encoder.lateral(2) is None  # Z is kept as it is


def test_the_network_decodes_kept_features_like_fresh_ones(network, slab) -> None:
    slices = slab(depth=2)
    with torch.inference_mode():
        kept = network.encoder.pre_fpn_features(slices)
        shapes = [(height, width, channels) for height, width, channels in network.encoder.pre_fpn_shapes]
        assert [(*level.shape[-2:], level.shape[2]) for level in kept] == shapes
        for found, expected in zip(network.decode(kept, pre_fpn=True), network(slices), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_layers_hold_every_parameter_once(encoder: Encoder) -> None:
    held = [parameter for layer in encoder.layers() for parameter in layer]
    assert len(held) == len(set(held))
    assert set(held) == set(encoder.parameters())
    assert len(encoder.layers()) > 5


def test_gradients_reach_every_layer_and_checkpointing_changes_none(network, slab) -> None:
    slices, found = slab(depth=2), []
    for checkpointing in (False, True):
        network.zero_grad()
        network.train().save_memory(activation_checkpointing=checkpointing, slices_at_once=1 if checkpointing else None)
        network(slices).segmentation.square().sum().backward()
        found.append([p.grad.clone() for p in network.encoder.parameters() if p.grad is not None])
    network.eval().save_memory(activation_checkpointing=False, slices_at_once=None)
    for layer in network.encoder.vision_encoder.layers():
        assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer)
    for gradient, other in zip(*found, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-3 * gradient.abs().max().item() + 1e-9, rtol=1e-3)


def test_it_freezes_and_its_last_stage_reaches_z(network, slab) -> None:
    encoder = network.encoder.freeze()
    require_frozen(encoder)
    train_last_stage(encoder)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert 0 < len(trained) < len(list(encoder.parameters()))
    encoder(slab()).z.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_lora_adapts_its_targets_and_leaves_a_plain_encoder(network, slab) -> None:
    encoder, slices = network.encoder, slab(depth=2)
    names = list(encoder.state_dict())
    before = encoder(slices).z.detach()
    add_lora(encoder, rank=2)
    torch.testing.assert_close(encoder(slices).z, before)
    adapters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(adapters) > 4
    for parameter in adapters:
        nn.init.normal_(parameter, std=0.1)
    adapted = encoder(slices).z.detach()
    assert (adapted - before).abs().max() > 1e-3
    merge_lora(encoder)
    assert list(encoder.state_dict()) == names
    torch.testing.assert_close(encoder(slices).z, adapted, atol=1e-4, rtol=1e-4)


def test_onnx_computes_the_same(network) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(encoder_onnx(network.encoder, 1), providers=["CPUExecutionProvider"])
    slices = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        expected = EncoderGraph(network.encoder)(slices)
    for found, level in zip(session.run(None, {"slices": slices.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), level, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in ENCODERS if not find_encoder(name).has_sam2_weights])
def test_without_sam2s_weights_it_starts_from_scratch_or_from_a_run(name: str, tmp_path: Path) -> None:
    recipe = with_settings(paper(), [f"model.encoder={name}", "model.size=nano", "model.image_size=64"])
    with pytest.raises(
        ConfigError, match=rf"^--weights auto: SAM2's weights do not fit model\.encoder={name}; give none"
    ):
        check_model(recipe, "auto")
    network, record = make_model(recipe, PLAN, "none")
    assert record.recipe.training.encoder == "train"
    save_model(network, record, tmp_path)
    started, _ = make_model(with_settings(recipe, ["training.encoder=lora"]), PLAN, str(tmp_path))
    slices = torch.rand(1, 2, 1, 64, 64)
    with torch.inference_mode():
        expected = load_model(tmp_path).network(slices).segmentation
        torch.testing.assert_close(started.eval()(slices).segmentation, expected, atol=1e-5, rtol=1e-5)
    other = with_settings(recipe, ["model.encoder=hiera"])
    with pytest.raises(WeightsError, match=rf"these weights need model\.encoder={name}, not hiera"):
        make_model(other, PLAN, str(tmp_path))


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model\.encoder: no encoder 'hierra'; did you mean 'hiera'\?$"):
        check_model(with_settings(paper(), ["model.encoder=hierra"]), "none")
