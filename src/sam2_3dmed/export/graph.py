"""The network's two parts as ONNX: the encoder, and the loop over the slices of a slab.

Both are traced, since torch.export took minutes for the unrolled loop and tracing takes seconds
(docs/notes/onnx.md has the figures).
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import Features, ImageEncoder
from sam2_3dmed.inference.onnx_network import FEATURES
from sam2_3dmed.model.network import SAM2For3dMed

OPSET = 18


class EncoderGraph(nn.Module):
    """slices (N, C, S, S) in [0, 1] -> z, stride8, stride4.

    The caller resizes the slices, because runtimes differ in how an antialiased resize rounds and pads.
    """

    outputs = FEATURES

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, slices: Tensor) -> tuple[Tensor, ...]:
        levels = self.encoder.encode(self.encoder.standardise(slices).unsqueeze(0))
        return tuple(level[0] for level in levels)


class SlabGraph(nn.Module):
    """z, stride8, stride4 of one slab (D, C, ., .) -> segmentation, and boundary and relative_position if any.

    All shapes are constant. With a variable number of slabs, half of the operations computed shapes, and opening the
    file took ten times as long, for the same seconds a slab.
    """

    def __init__(self, network: SAM2For3dMed) -> None:
        super().__init__()
        self.network = network
        parts = [("boundary", network.boundary), ("relative_position", network.srpp)]
        self.outputs = ("segmentation", *(name for name, part in parts if part is not None))

    def forward(self, z: Tensor, stride8: Tensor, stride4: Tensor) -> tuple[Tensor, ...]:
        prediction = self.network.decode(Features(*(level.unsqueeze(0) for level in (z, stride8, stride4))))
        return tuple(part[0] for part in prediction if part is not None)


def encoder_onnx(encoder: ImageEncoder, num_channels: int) -> bytes:
    """Export an `EncoderGraph` for any number of slices."""
    size = encoder.image_size
    example = (torch.rand(2, num_channels, size, size),)
    return _trace(EncoderGraph(encoder).eval(), example, ("slices",), axis="num_slices")


def slab_onnx(network: SAM2For3dMed, slab_slices: int) -> bytes:
    """Export a `SlabGraph` for slabs of `slab_slices`."""
    side, channels = network.encoder.image_size // 16, network.segmentation.channels
    example = tuple(torch.rand(slab_slices, channels, side * k, side * k) for k in (1, 2, 4))
    return _trace(SlabGraph(network).eval(), example, FEATURES)


def _trace(
    graph: EncoderGraph | SlabGraph, example: Sequence[Tensor], inputs: Sequence[str], axis: str | None = None
) -> bytes:
    """axis: name of the first axis of every input and output if its length is variable."""
    outputs = graph.outputs
    with torch.no_grad(), _traceable(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        shapes = [[axis or len(output), *output.shape[1:]] for output in graph(*example)]
        torch.onnx.export(
            graph,
            tuple(example),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: axis} for name in (*inputs, *outputs)} if axis else None,
        )
        return _clean(_fold_constants(path), shapes)


@contextmanager
def _traceable() -> Iterator[None]:
    """Disable PyTorch's fused encoder layer and the warnings of tracing."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(action="ignore"):  # about values that become constants, as intended
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _fold_constants(model: Path) -> bytes:
    """Compute constant parts once instead of at every start, with ONNX's own operators only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    folded = model.with_name("folded.onnx")
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return folded.read_bytes()


def _clean(model: bytes, shapes: Sequence[Sequence[int | str]]) -> bytes:
    """Set the shapes of the outputs; remove the tools' notes and unused operator sets."""
    import onnx

    proto = onnx.load_from_string(model)
    for output, shape in zip(proto.graph.output, shapes, strict=True):
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, kind, shape))
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del proto.graph.value_info[:]
    proto.doc_string = ""
    _share_equal_weights(proto.graph)
    used = {node.domain for node in proto.graph.node}
    for opset in [opset for opset in proto.opset_import if opset.domain not in used]:
        proto.opset_import.remove(opset)
    return proto.SerializeToString()


def _share_equal_weights(graph: Any) -> None:
    """Keep one copy of equal weights. Folding gives every slice of the unrolled loop its own copy."""
    first: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    for place in range(len(graph.initializer) - 1, -1, -1):  # backwards, because items are deleted
        tensor = graph.initializer[place]
        name, tensor.name = tensor.name, ""
        shared[name] = first.setdefault(sha256(tensor.SerializeToString()).digest(), name)
        tensor.name = name
        if shared[name] != name:
            del graph.initializer[place]
    for node in graph.node:
        node.input[:] = [shared.get(name, name) for name in node.input]
