"""Checkpoints in Meta's and upstream's format go into our network strictly; the errors name the keys."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.weights import Sam2Weights, _detect_size, from_meta, load_sam2, read_sam2


def formula_weight(name: str, shape: list[int]) -> torch.Tensor:
    """The oracle's formula for a parameter (see the README beside the oracle)."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    u = ((raw >> 11).astype(np.float64) * 2**-52 - 1).reshape(shape)
    if name.endswith("pred_obj_score_head.layers.2.bias"):
        value = np.full(shape, 10.0)
    elif name.endswith(".gamma"):
        value = 0.5 + 0.1 * u
    elif len(shape) == 1:
        value = 1 + 0.1 * u if name.endswith(".weight") and "embed" not in name else 0.1 * u
    elif any(part in name for part in ("embed", "tpos_enc", "token", "no_obj", "no_mem", "gaussian")):
        value = u if "gaussian" in name else 0.5 * u
    else:
        value = u * np.sqrt(3 / np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


@pytest.fixture(scope="session")
def meta_shapes(shared_data: Path) -> dict:
    return json.loads((shared_data / "oracle" / "meta_checkpoint_shapes.json").read_text())


@pytest.fixture(scope="session")
def meta_tiny(meta_shapes: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "tiny.pt"
    torch.save({"model": {name: formula_weight(name, shape) for name, shape in meta_shapes["tiny"].items()}}, path)
    return path


def oracle_input() -> torch.Tensor:
    size = 512
    z, c = np.arange(9)[:, None, None, None], np.arange(3)[None, :, None, None]
    y, x = np.arange(size)[None, None, :, None], np.arange(size)[None, None, None, :]
    wave = np.sin(2 * np.pi * (x * (3 + c) + y * (5 - c)) / size + 0.35 * z)
    r2 = (x - size / 2) ** 2 + (y - size / 2) ** 2
    return torch.from_numpy((wave + 0.5 * np.cos(2 * np.pi * r2 / size**2 * (4 + c) - 0.2 * z)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("slice_mixing", [False, True])
def test_our_loop_is_sam2(meta_tiny: Path, shared_data: Path, slice_mixing: bool) -> None:
    """Meta's own outputs for the same weights and input: logits, pointers, memories within 1e-3.

    Mixers start at zero, so the network starts as SAM2 with them, too.
    """
    reference = np.load(shared_data / "oracle" / "meta_tiny_512.npz")
    weights = read_sam2(meta_tiny)
    assert weights.size == "tiny"
    assert weights.pointer_time
    config = NetworkConfig(size="tiny", image_size=512, srpp=False, boundary=False, slice_mixing=slice_mixing)
    network = build_network(config, 1).eval()
    load_sam2(network, weights)

    decode, found = network.segmentation.decode, []

    def spy(*arguments):
        found.append(decode(*arguments))
        return found[-1]

    network.segmentation.decode = spy
    with torch.inference_mode():
        features = network.encoder.encode(oracle_input().unsqueeze(0))
        prediction = network.decode(features)
        fine = network.segmentation.project(features)
        z = features.z
        memories = [network.segmentation.encode_memory(z[:, i], found[i], z[:, i]) for i in range(9)]
    pointers = [memory.pointer for memory in memories]

    np.testing.assert_allclose(features.z[0, 0].numpy(), reference["z_first"], atol=1e-3)
    spread = [fine.stride4.std().item(), fine.stride8.std().item(), features.z.std().item()]
    np.testing.assert_allclose(spread, reference["z_std"], rtol=1e-3)
    np.testing.assert_allclose(prediction.segmentation[0, 0].numpy(), reference["mask_logits"], atol=1e-3)
    np.testing.assert_allclose(torch.cat(pointers).numpy(), reference["object_pointers"], atol=1e-3)
    for memory, expected in ((memories[0], "memory_first"), (memories[-1], "memory_last")):
        spatial = memory.spatial.squeeze(0).T.reshape(64, 32, 32)
        np.testing.assert_allclose(spatial.numpy(), reference[expected], atol=1e-3)


@pytest.mark.slow
def test_how_near_a_pooled_memory_stays_to_sam2(meta_tiny: Path, shared_data: Path) -> None:
    """Slices 1 to 8 beside Meta's outputs, with the same weights, which were not made for pooling."""
    expected = torch.from_numpy(np.load(shared_data / "oracle" / "meta_tiny_512.npz")["mask_logits"])
    config = NetworkConfig(size="tiny", image_size=512, srpp=False, boundary=False, memory_pooling=2)
    network = build_network(config, 1).eval()
    load_sam2(network, read_sam2(meta_tiny))
    with torch.inference_mode():
        found = network.decode(network.encoder.encode(oracle_input().unsqueeze(0))).segmentation[0, 0]
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=0)  # it reads no memory
    ours, theirs = (logits[1:].flatten(1) > 0 for logits in (found, expected))
    dice = 2 * (ours & theirs).sum(dim=1) / (ours.sum(dim=1) + theirs.sum(dim=1))
    difference = (found - expected)[1:]
    assert float(dice.mean()) == pytest.approx(0.987, abs=5e-4)
    assert float(dice.min()) == pytest.approx(0.978, abs=5e-4)
    assert float(difference.square().mean().sqrt()) == pytest.approx(0.349, abs=5e-3)
    assert float(expected[1:].std()) == pytest.approx(6.8, abs=0.1)


@pytest.mark.parametrize("size", ["small", "base_plus", "large"])
def test_the_other_sizes_load_by_name_and_shape(size: str, meta_shapes: dict) -> None:
    with torch.device("meta"):
        meta = {name: torch.empty(shape) for name, shape in meta_shapes[size].items()}
        network = build_network(NetworkConfig(size=size, image_size=512), 2)
    state = from_meta(meta)
    assert _detect_size(state, size) == size
    load_sam2(network, Sam2Weights(state=state, size=size, pointer_time=True, source=size))


def meta_network(num_classes: int = 2, **switches: object) -> SAM2For3dMed:
    """A tiny network without memory for its weights: names and shapes are all these tests look at."""
    with torch.device("meta"):
        return build_network(NetworkConfig(**{"size": "tiny", "image_size": 512} | switches), num_classes)


def save_meta(path: Path, shapes: dict) -> Path:
    """A Meta checkpoint of zeros; a tensor that repeats one number is saved as one number."""
    torch.save({"model": {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}}, path)
    return path


def test_a_sam_2_0_file_loads_without_pointer_time(meta_shapes: dict, tmp_path: Path) -> None:
    """SAM 2.0 has neither an embedding for absent objects nor a temporal code for pointers."""
    later = ("no_obj_embed_spatial", "obj_ptr_tpos_proj")
    shapes = {name: shape for name, shape in meta_shapes["tiny"].items() if not name.startswith(later)}
    assert len(meta_shapes["tiny"]) - len(shapes) == 3
    weights = read_sam2(save_meta(tmp_path / "sam2.pt", shapes))
    assert weights.size == "tiny"
    assert not weights.pointer_time
    load_sam2(meta_network(pointer_time=False), weights)
    with pytest.raises(WeightsError, match=r"missing .*temporal_positional_encoding_projection_layer\.weight"):
        load_sam2(meta_network(), weights)
    later_weights = read_sam2(save_meta(tmp_path / "sam2.1.pt", meta_shapes["tiny"]))
    assert later_weights.pointer_time
    with pytest.raises(WeightsError, match=r"unexpected temporal_positional_encoding_projection_layer\.bias"):
        load_sam2(meta_network(pointer_time=False), later_weights)


def test_weights_of_another_size_are_refused(meta_shapes: dict, tmp_path: Path) -> None:
    weights = read_sam2(save_meta(tmp_path / "small.pt", meta_shapes["small"]))
    assert weights.size == "small"
    with pytest.raises(WeightsError, match=r"small\.pt: not the weights.*; unexpected .* and \d+ more; wrong"):
        load_sam2(meta_network(), weights)


@pytest.fixture(scope="session")
def hf_weights(hf_folder: Path) -> Sam2Weights:
    return read_sam2(hf_folder)


def test_a_hugging_face_folder_loads_into_every_part(nano, upstream, hf_weights: Sam2Weights) -> None:
    assert hf_weights.size == "nano"
    assert hf_weights.pointer_time
    network = nano(num_classes=1)
    load_sam2(network, hf_weights)

    theirs = upstream.state_dict()
    for name, tensor in network.encoder.vision_encoder.state_dict().items():
        assert torch.equal(tensor, theirs[f"vision_encoder.{name}"])
    for decoder in (network.segmentation, network.boundary.decoder):
        for name, tensor in decoder.state_dict().items():
            source = name
            for moved in ("no_mask_embed", "not_a_point_embed"):
                source = source.replace(f"mask_decoder.{moved}", f"prompt_encoder.{moved}")
            source = source.replace("mask_decoder.shared_image_embedding", "shared_image_embedding")
            if "class_hypernetworks" not in name:
                assert torch.equal(tensor, theirs[source]), name
        hypernetwork = upstream.mask_decoder.output_hypernetworks_mlps[0]
        tokens = torch.randn(1, 1, decoder.channels)
        torch.testing.assert_close(decoder.mask_decoder.class_hypernetworks(tokens), hypernetwork(tokens))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_further_classes_start_as_copies_of_the_first(nano, slab, hf_weights: Sam2Weights, num_classes: int) -> None:
    network = nano(num_classes=num_classes)
    load_sam2(network, hf_weights)
    with torch.inference_mode():
        prediction = network(slab(batch=2, depth=3))
    for logits in (prediction.segmentation, prediction.boundary):
        assert logits.std() > 1e-3
        for k in range(1, num_classes):
            torch.testing.assert_close(logits[:, k], logits[:, 0], atol=1e-5, rtol=1e-4)
    classes = network.segmentation.mask_decoder
    for weight in (*classes.class_hypernetworks.weights, *classes.class_hypernetworks.biases):
        assert torch.equal(weight, weight[:1].expand_as(weight))
    assert torch.equal(
        classes.class_tokens.weight, classes.mask_tokens.weight[:1].expand_as(classes.class_tokens.weight)
    )
    assert not network.segmentation.class_memory.weight.any()


HYPERNETWORK = "mask_decoder.output_hypernetworks_mlps.0"


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize(
    ("gone", "added", "message"),
    [
        ("memory_encoder.projection.bias", {}, r"missing .*segmentation\.memory_encoder\.projection\.bias"),
        ("vision_encoder.neck.convs.0.bias", {}, r"missing encoder\.vision_encoder\.neck\.convs\.0\.bias"),
        ("shared_image_embedding.positional_embedding", {}, "missing .*positional_embedding"),
        (f"{HYPERNETWORK}.layers.0.bias", {}, rf"missing .*{HYPERNETWORK}\.layers\.0\.bias"),
        (None, {"surplus.weight": (1,)}, r"unexpected surplus\.weight"),
        (None, {"vision_encoder.surplus": (1,)}, r"unexpected vision_encoder\.surplus"),
        (None, {f"{HYPERNETWORK}.layers.1.bias": (1,)}, rf"unexpected {HYPERNETWORK}\.layers\.1\.bias"),
        (
            None,
            {"no_memory_embedding": (1, 1, 7)},
            r"wrong shape: no_memory_embedding is \(1, 1, 7\), not \(1, 1, \d+\)",
        ),
        (
            None,
            {f"{HYPERNETWORK}.proj_in.weight": (3, 5)},
            rf"{HYPERNETWORK}\.proj_in\.weight is \(3, 5\), not",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    nano, hf_weights: Sam2Weights, boundary: bool, gone: str | None, added: dict, message: str
) -> None:
    state = {name: tensor for name, tensor in hf_weights.state.items() if name != gone}
    state |= {name: torch.zeros(shape) for name, shape in added.items()}
    network = nano(boundary=boundary)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_sam2(network, replace(hf_weights, state=state))
    assert str(caught.value).startswith(f"{hf_weights.source}: not the weights of this model: ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
