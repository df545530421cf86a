"""The network as inference runs it: mirrored slices, autocast, both branches' maps, and compiled parts."""

import shutil

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.encoders.image_encoder import resize
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward, compile_network
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import DecoderFeatures, Prediction, SAM2For3dMed
from sam2_3dmed.model.prompts import Prompts, boxes_around, nothing

MODES = pytest.mark.parametrize("mode", ["slabs", "stream"])


def stack(depth=5, seed=0):
    return np.random.default_rng(seed).random((depth, 1, 20, 30), dtype=np.float32)


def logits_of(network, slices, **options):
    """(N, K or 2K, h, w)."""
    boundary, slab_slices = options.pop("boundary", False), options.pop("slab_slices", 3)
    config = InferenceConfig(**{"precision": "32"} | options)
    found = dict(slice_logits(Forward(network, slices, config, boundary=boundary), slab_slices))
    return torch.stack([found[i] for i in range(len(slices))])


def mirrored(slices):
    return np.ascontiguousarray(slices[..., ::-1])


@MODES
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_flips_are_the_mean_with_the_mirrored_slice_turned_back(network, mode, direction):
    slices, options = stack(), {"mode": mode, "direction": direction}
    own = logits_of(network, slices, **options)
    other = logits_of(network, mirrored(slices), **options).flip(-1)
    assert (own - other).abs().max() > 1e-2
    found = logits_of(network, slices, flips=True, **options)
    torch.testing.assert_close(found, (own + other) / 2, atol=2e-3 * own.abs().max().item(), rtol=0)


@MODES
@pytest.mark.parametrize("shifts", [False, True])
def test_with_flips_a_mirrored_stack_has_mirrored_logits(network, mode, shifts):
    options = {"mode": mode, "flips": True, "shifts": shifts}
    one, two = (logits_of(network, slices, **options) for slices in (stack(), mirrored(stack())))
    torch.testing.assert_close(two.flip(-1), one, atol=2e-3 * one.abs().max().item(), rtol=0)


@MODES
@pytest.mark.parametrize("flips", [False, True])
def test_shifts_are_the_mean_of_what_is_seen_from_four_places(network, mode, flips):
    size = network.encoder.image_size
    large = np.pad(resize(torch.from_numpy(stack()), size), [(0, 0), (0, 0), (2, 2), (2, 2)], mode="edge")
    expected = torch.zeros(len(large), 2, size // 2, size // 2)
    for top, left in ((0, 0), (4, 4), (0, 4), (4, 0)):
        seen = np.ascontiguousarray(large[..., top : top + size, left : left + size])
        turned = flips and top != left
        logits = logits_of(network, mirrored(seen) if turned else seen, mode=mode)
        fine = torch.nn.functional.interpolate(logits.flip(-1) if turned else logits, scale_factor=2, mode="bilinear")
        around = torch.nn.functional.pad(
            fine, (1, 1, 1, 1), mode="replicate"
        )  # fine is at stride 2: a place is 2 pixels
        top, left = (4 - top) // 2, (4 - left) // 2
        expected += around[..., top : top + size // 2, left : left + size // 2] / 4
    found = logits_of(network, stack(), mode=mode, flips=flips, shifts=True)
    torch.testing.assert_close(found, expected, atol=2e-3 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("flips", [False, True])
def test_boxes_move_and_turn_with_what_is_seen(flips):
    network = build_network(
        NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False, box_every=1), 1
    ).eval()
    label = torch.zeros(1, 64, 64, dtype=torch.int32)
    label[0, 20:30, 12:40] = 1
    image = label.unsqueeze(1).float().numpy()
    prompts = Prompts(boxes_around(label, [1]))
    forward = Forward(network, image, InferenceConfig(flips=flips, shifts=True), prompts=prompts)
    features = forward.encode(0, 1).at(0)
    seen = forward._seen(torch.from_numpy(image))[:, 0, 0]
    assert len({tuple(row.nonzero()[0].tolist()) for row in seen}) == 4
    torch.testing.assert_close(features.points, boxes_around((seen > 0).int(), [1]))


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shifts", [False, True])
def test_masks_as_prompts_move_and_turn_with_what_is_seen(flips, shifts):
    config = NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False, promptable=True, memory="none")
    network = build_network(config, 1).eval()
    masks = (torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    prompts = Prompts(nothing(2, 1), masks)
    forward = Forward(network, masks.numpy(), InferenceConfig(flips=flips, shifts=shifts), prompts=prompts)
    seen = forward._seen(masks)
    torch.testing.assert_close(
        forward.encode(0, 2).masks, torch.nn.functional.avg_pool2d(seen.flatten(0, 1), 4).view(*seen.shape[:3], 16, 16)
    )


def test_what_is_seen_further_down_and_right_comes_back_where_it_was(network):
    """Of a network that sees nothing but brightness."""

    class Bright(torch.nn.Module):
        device, image_size, laterals, has_memory = torch.device("cpu"), 64, None, True

        def __init__(self):
            super().__init__()
            self.encoder = self

        def forward(self, slices):
            planes = torch.nn.functional.avg_pool2d(slices.flatten(0, 1), 4).unflatten(0, slices.shape[:2])
            return DecoderFeatures(planes, planes, planes)

        def project(self, features):
            return features

        def decode_slabs(self, features):
            return Prediction(features.z.transpose(1, 2), None, None)

    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64) * torch.linspace(0, 1, 64).view(1, 1, 64, 1)
    found = logits_of(Bright(), ramp.numpy(), shifts=True)
    expected = torch.nn.functional.avg_pool2d(ramp, 2)
    torch.testing.assert_close(found[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-5, rtol=1e-4)


@MODES
def test_boundaries_follow_the_masks(network, mode):
    options = {"mode": mode, "direction": "forward", "slab_slices": 8}
    with torch.inference_mode():
        expected = network(torch.from_numpy(stack()).unsqueeze(0))
    found = logits_of(network, stack(), boundary=True, **options)
    both = torch.cat([expected.segmentation, expected.boundary], dim=1)[0].transpose(0, 1)
    torch.testing.assert_close(found, both, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits_of(network, stack(), **options), found[:, :2])


@MODES
def test_positions_of_flips_are_their_mean(network, mode):
    def positions_of(slices, flips):
        told = []
        config = InferenceConfig(mode=mode, direction="forward", flips=flips, precision="32")
        list(slice_logits(Forward(network, slices, config), 8, lambda slab, positions: told.append(positions)))
        return told[0]

    own, other = positions_of(stack(), flips=False), positions_of(mirrored(stack()), flips=False)
    torch.testing.assert_close(positions_of(stack(), flips=True), (own + other) / 2, atol=1e-4, rtol=1e-4)


@MODES
def test_bf16_is_for_the_network_alone(network, mode):
    """The reader of the logits has autocast off and float32 in hand, whatever happens inside."""
    exact = logits_of(network, stack(), mode=mode)
    for _, logits in slice_logits(Forward(network, stack(), InferenceConfig(mode=mode, precision="bf16")), 3):
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert logits.dtype == torch.float32
    rough = logits_of(network, stack(), mode=mode, precision="bf16")
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_more_small_slices_are_encoded_at_once(network, monkeypatch):
    assert Forward(network, stack(), InferenceConfig()).chunk == 32
    assert Forward(network, stack(), InferenceConfig(flips=True)).chunk == 16
    assert Forward(network, stack(), InferenceConfig(flips=True, shifts=True)).chunk == 8
    monkeypatch.setattr(network.encoder, "image_size", 1024)
    assert Forward(network, stack(), InferenceConfig()).chunk == 1


def test_compiling_without_a_compiler_is_one_line(network: SAM2For3dMed, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"^compile: torch\.compile needs a C\+\+ compiler here"):
        next(slice_logits(Forward(network, stack(), InferenceConfig(compile=True)), 3))
    assert network.encoder.vision_encoder._compiled_call_impl is None


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_is_compiled_gives_the_same(monkeypatch, precision):
    """Each part is one graph; the C++ made of it, which takes minutes, is benchmarks/video_model.py's."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(size="nano", image_size=64, boundary=False), 2).eval()
    config = InferenceConfig(direction="forward", mode="stream", precision=precision)
    eager = [logits for _, logits in slice_logits(Forward(network, stack(), config), 4)]
    compile_part = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_part(self, backend="eager", fullgraph=True))
    compiling = config.model_copy(update={"compile": True})
    compiled = [logits for _, logits in slice_logits(Forward(network, stack(), compiling), 4)]
    assert network.encoder.vision_encoder._compiled_call_impl is not None
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_network_is_compiled_once(network, monkeypatch):
    parts = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: parts.append(self))
    compile_network(network)
    decoders = (network.segmentation, network.boundary.decoder)
    expected = [network.encoder.vision_encoder]
    expected += [part for decoder in decoders for part in (decoder.mask_decoder, decoder.memory_encoder)]
    assert parts == expected
