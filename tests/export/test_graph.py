"""The network as ONNX: the same numbers at any number of slices and slabs, and nothing but the model in the file."""

import numpy as np
import onnx
import pytest
import torch

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.export.run import OPSET, encoder_onnx, slab_onnx
from sam2_3dmed.inference.onnx_network import FEATURES, open_session
from sam2_3dmed.model.build import build_network


@pytest.fixture(
    scope="module", params=[{}, {"slice_mixing": True, "memory_pooling": 2}, {"slice_mixing": True, "memory": "none"}]
)
def network(request):
    torch.manual_seed(0)
    made = build_network(NetworkConfig(size="nano", image_size=64, fusion_residual=True, **request.param), 2)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return made.eval()


@pytest.fixture(scope="module")
def encoder(network) -> bytes:
    return encoder_onnx(network.encoder, num_channels=2)


@pytest.fixture(scope="module")
def slab(network) -> bytes:
    return slab_onnx(network, 2)


def shapes(values) -> dict[str, list[str | int]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def test_the_encoder_is_equal_for_any_number_of_slices(network, encoder: bytes) -> None:
    session = open_session(encoder)
    for num_slices in (1, 3):
        slices = torch.rand(num_slices, 2, 64, 64)
        with torch.no_grad():
            expected = network.encoder(slices.unsqueeze(0))
        for ours, theirs in zip(session.run(None, {"slices": slices.numpy()}), expected, strict=True):
            np.testing.assert_allclose(ours, theirs[0].numpy(), atol=2e-4)


def test_the_loop_is_equal(network, slab: bytes) -> None:
    session = open_session(slab)
    for _ in range(2):
        with torch.no_grad():
            features = network.encoder(torch.rand(1, 2, 1, 64, 64))
            expected = network.decode(features)
        given = dict(zip(FEATURES, (level[0].numpy() for level in features), strict=True))
        for ours, theirs in zip(session.run(None, given), expected, strict=True):
            np.testing.assert_allclose(ours, theirs[0].numpy(), atol=2e-4)


def test_inputs_and_outputs_are_named_and_shaped(encoder: bytes, slab: bytes) -> None:
    graph = onnx.load_from_string(encoder).graph
    levels = {"z": [64, 4, 4], "stride8": [64, 8, 8], "stride4": [64, 16, 16]}
    assert shapes(graph.input) == {"slices": ["num_slices", 2, 64, 64]}
    assert shapes(graph.output) == {name: ["num_slices", *shape] for name, shape in levels.items()}
    graph = onnx.load_from_string(slab).graph
    assert shapes(graph.input) == {name: [2, *shape] for name, shape in levels.items()}
    assert shapes(graph.output) == {
        "segmentation": [2, 2, 16, 16],
        "boundary": [2, 2, 16, 16],
        "relative_position": [2, 2],
    }


def test_the_files_are_plain_onnx_and_tell_nothing_of_the_machine(encoder: bytes, slab: bytes) -> None:
    for model in (encoder, slab):
        proto = onnx.load_from_string(model)
        onnx.checker.check_model(proto)
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", OPSET)]
        assert b"site-packages" not in model
        assert b"sam2_3dmed" not in model


def test_constant_parts_are_computed_beforehand(slab: bytes) -> None:
    operators = {node.op_type for node in onnx.load_from_string(slab).graph.node}
    assert not operators & {"Constant", "Shape", "Range", "Cos", "Sin", "If"}


def test_every_weight_is_there_once(network, slab: bytes) -> None:
    weights = [(tuple(w.dims), w.raw_data) for w in onnx.load_from_string(slab).graph.initializer]
    assert len(set(weights)) == len(weights)
    loop = sum(p.nbytes for name, p in network.named_parameters() if not name.startswith("encoder"))
    assert len(slab) < 1.5 * loop


def test_the_fused_encoder_layer_is_back_after_tracing(slab: bytes) -> None:
    assert torch.backends.mha.get_fastpath_enabled()
