"""Checkpoints in Meta's and upstream's format go into our network strictly; the errors name the keys."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.weights import from_meta, load_sam2, read_sam2


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
def test_our_loop_is_sam2(meta_tiny: Path, shared_data: Path) -> None:
    """Meta's own outputs for the same weights and input: logits, pointers, memories within 1e-3."""
    reference = np.load(shared_data / "oracle" / "meta_tiny_512.npz")
    weights = read_sam2(meta_tiny)
    assert weights.size == "tiny"
    assert weights.pointer_time
    network = build_network(size="tiny", image_size=512, num_classes=1, srpp=False, boundary=False).eval()
    load_sam2(network, weights)

    pointers, memories = [], []
    remember = network.segmentation.remember

    def spy(z, logits, pointer):
        memory = remember(z, logits, pointer)
        pointers.append(memory.pointer)
        memories.append(memory.spatial)
        return memory

    network.segmentation.remember = spy
    with torch.inference_mode():
        features = network.encoder.encode(oracle_input().unsqueeze(0))
        prediction = network.decode(features)
        fine = network.segmentation.project(features)

    np.testing.assert_allclose(features.z[0, 0].numpy(), reference["z_first"], atol=1e-3)
    spread = [fine.stride4.std().item(), fine.stride8.std().item(), features.z.std().item()]
    np.testing.assert_allclose(spread, reference["z_std"], rtol=1e-3)
    np.testing.assert_allclose(prediction.segmentation[0, 0].numpy(), reference["mask_logits"], atol=1e-3)
    np.testing.assert_allclose(torch.cat(pointers).numpy(), reference["object_pointers"], atol=1e-3)
    for memory, expected in ((memories[0], "memory_first"), (memories[-1], "memory_last")):
        np.testing.assert_allclose(memory.squeeze(1).T.reshape(64, 32, 32).numpy(), reference[expected], atol=1e-3)


@pytest.mark.parametrize("size", ["small", "base_plus", "large"])
def test_the_other_sizes_load_by_name_and_shape(size: str, meta_shapes: dict) -> None:
    from sam2_3dmed.model.weights import Sam2Weights, _detect_size

    with torch.device("meta"):
        meta = {name: torch.empty(shape) for name, shape in meta_shapes[size].items()}
        network = build_network(size=size, image_size=512, num_classes=2)
    state = from_meta(meta)
    assert _detect_size(state, size) == size
    load_sam2(network, Sam2Weights(state=state, size=size, pointer_time=True, source=size))
