"""Export of a run folder as ONNX files, checked against PyTorch: the encoder, and the loop over the slices of a slab.

Both are traced, since torch.export took minutes for the unrolled loop and tracing takes seconds
(docs/notes/onnx.md has the figures).
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.phantom import PHANTOM_SHAPE, make_phantom_case
from sam2_3dmed.encoders.image_encoder import Features, ImageEncoder, resize
from sam2_3dmed.errors import ConfigError, DataError, UserError, WeightsError
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.onnx_network import (
    FEATURES,
    FORMAT,
    OnnxRecord,
    open_session,
    require_onnx,
    run_session,
    run_slabs,
)
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.processes.atomic import make_folder, naming, replacing, write_text
from sam2_3dmed.processes.journal import checksum
from sam2_3dmed.run.run_config import CONFIG_FILE, Sam2Record
from sam2_3dmed.run.run_folder import (
    MODEL_FILE,
    load_model,
    read_sam2_record,
    remember_codes,
    remembered_codes,
    remembered_data,
)
from sam2_3dmed.volume.files import read_channels
from sam2_3dmed.volume.preprocess import Preprocessing, SliceStack

OPSET = 18
TOLERANCE = 1e-3  # far above rounding, far below what changes a mask

logger = logging.getLogger(__name__)


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


def export_run(
    run: Path,
    folder: Path,
    *,
    check: Path | None = None,
    lengths: Sequence[int] = (),
    tolerance: float = TOLERANCE,
) -> dict[Path, float]:
    """Write encoder.onnx, slab_D.onnx and config.yaml. Each ONNX file is checked before it is written.

    Args:
        folder: New, empty, of an earlier export, or the run's own.
        check: Volume to check on, instead of a case of the run's data set or a phantom.
        lengths: Lengths of further slabs, one file each, for volumes shorter than D.

    Returns: ONNX file -> its largest relative difference from PyTorch, which may be `tolerance`.
    Raises UserError if the run is not finished, the extra is missing, the folder holds another run, or a file differs.
    """
    record = _exportable(run, folder, lengths)
    predictor = cast(Predictor, load_model(run, device="cpu"))
    network, depth = predictor.network, predictor.slab_slices
    make_folder(folder)
    source, slices = check_slices(run, check, predictor.preprocessing, depth)
    of_export = {
        "model_sha256": checksum([run / MODEL_FILE]),
        "run_sha256": record.sha256(),
        "image_size": network.encoder.image_size,
        "classes": {str(value): name for value, name in record.plan.labels.items()},
        "checked_on": source,
        "tolerance": tolerance,
    }
    network.eval()
    model = encoder_onnx(network.encoder, len(record.plan.channels))
    found = check_encoder(model, network, slices[:depth])
    written = dict([_write(folder, model, found, part="encoder", slab_slices=None, **of_export)])
    for length in sorted({depth, *lengths}):
        model = slab_onnx(network, length)
        found = check_slab(model, network, slices, length)
        written |= [_write(folder, model, found, part="slab", slab_slices=length, **of_export)]
    if folder.resolve() != run.resolve():
        write_text(folder / CONFIG_FILE, (run / CONFIG_FILE).read_text(encoding="utf-8"))
        remember_codes(folder, remembered_codes(run))
    return written


def _exportable(run: Path, folder: Path, lengths: Sequence[int]) -> Sam2Record:
    """Raise UserError if the run cannot become ONNX or has no slabs for these lengths, or the folder is another's."""
    require_onnx("onnx", "onnxruntime")
    record = read_sam2_record(run, "export")
    model = record.recipe.model
    if model.memory == "self_sorting":
        raise ConfigError(f"{run}: model.memory {model.memory} draws random numbers and cannot become ONNX")
    if record.needs_reference:
        raise ConfigError(f"{run}: takes prompts, for which an exported file has no input")
    depth = record.recipe.slab_slices or record.plan.slab_slices
    for length in lengths:
        if not 1 <= length < depth:
            raise ConfigError(f"--length {length}: expected 1 to {depth - 1}, since the run's slabs have {depth}")
    config = folder / CONFIG_FILE
    if config.is_file() and config.read_bytes() != (run / CONFIG_FILE).read_bytes():
        raise DataError(f"{folder}: holds another run or its export; choose an empty folder")
    return record


def _write(folder: Path, model: bytes, found: Differences, **fields: Any) -> tuple[Path, float]:
    """Write a file with its record. Returns: the file and its largest relative difference."""
    import onnx

    record = OnnxRecord(
        format=FORMAT,
        version=version("sam2-3dmed"),
        opset=OPSET,
        outputs=tuple(found.absolute),
        max_abs_difference=found.absolute,
        max_rel_difference=found.relative,
        **fields,
    )
    path = folder / record.file_name
    found.require(record.tolerance, path.name)
    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, record.properties())
    with naming(path, "cannot be written"), replacing(path) as file:
        file.write(proto.SerializeToString())
    difference = max(found.relative.values())
    logger.info("%s: differs from PyTorch by at most %.1e, relatively, on %s", path.name, difference, record.checked_on)
    return path, difference


@dataclass(frozen=True)
class Differences:
    """Largest absolute difference of each output, and its ratio to the output's largest absolute value."""

    absolute: dict[str, float]
    relative: dict[str, float]

    @classmethod
    def between(cls, onnx: Mapping[str, Tensor], pytorch: Iterable[Tensor]) -> Differences:
        absolute, relative = {}, {}
        for (name, ours), theirs in zip(onnx.items(), pytorch, strict=True):
            difference, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
            absolute[name] = difference
            if scale:
                relative[name] = difference / scale
            else:
                relative[name] = math.inf if difference else 0.0
        return cls(absolute, relative)

    def require(self, tolerance: float, file: str) -> None:
        """Raise WeightsError if a relative difference is above the tolerance, or NaN."""
        for name, difference in self.relative.items():
            if not difference <= tolerance:
                raise WeightsError(
                    f"{file}: {name} differs from PyTorch's by {difference:.2g} of its largest value, "
                    f"and {tolerance:g} is allowed; nothing was written for it"
                )


def check_slices(
    run: Path, file: Path | None, preprocessing: Preprocessing, at_least: int
) -> tuple[str, NDArray[np.float32]]:
    """Take slices from the middle of `file`, else of the run's first case with enough slices, else of a phantom.

    Returns: the source without file names, and (N, C, H0, W0) in [0, 1].
    Raises: UserError if `file` cannot be used, or has fewer slices than `at_least`.
    """
    if file is not None:
        volume = find_inputs([file], len(preprocessing.normalisation))[0].read()
        stack = preprocessing.stack(volume)
        if len(stack) < at_least:
            raise DataError(f"{file}: has {len(stack)} slices, and the check needs a slab of {at_least}")
        return "a given volume", _middle(stack, 2 * at_least)
    data = remembered_data(run)
    try:
        for case in read_dataset(data).cases if data is not None else ():
            stack = preprocessing.stack(read_channels(case.images))
            if len(stack) >= at_least:
                return "the run's data set", _middle(stack, 2 * at_least)
    except UserError as error:
        logger.warning("The check uses a phantom, since the run's data set cannot be read: %s", error)
    return "a phantom", _phantom_slices(len(preprocessing.normalisation), at_least)


def check_encoder(model: bytes, network: SAM2For3dMed, slices: NDArray[np.float32]) -> Differences:
    """Compare the encoder's feature levels. slices: (N, C, H0, W0)."""
    planes = resize(torch.from_numpy(slices), network.encoder.image_size)
    with torch.inference_mode():
        expected = network.encoder(planes.unsqueeze(0))
    found = run_session(open_session(model), {"slices": planes})
    return Differences.between(found, (level.squeeze(0) for level in expected))


def check_slab(model: bytes, network: SAM2For3dMed, slices: NDArray[np.float32], length: int) -> Differences:
    """Compare all outputs on three slabs: the first slices, the middle ones, and these reversed."""
    middle = (len(slices) - length) // 2
    slabs = np.stack([slices[:length], slices[middle : middle + length], slices[middle : middle + length][::-1]])
    with torch.inference_mode():
        features: Features = network.encoder(torch.from_numpy(slabs))
        expected = [part for part in network.decode(features) if part is not None]
    return Differences.between(run_slabs(open_session(model), features), expected)


def _middle(stack: SliceStack, count: int) -> NDArray[np.float32]:
    """At most `count` slices, so that a long volume need not fit into memory as float32."""
    start = max(0, (len(stack) - count) // 2)
    return stack[start : start + count]


def _phantom_slices(num_channels: int, at_least: int) -> NDArray[np.float32]:
    """A phantom scaled to [0, 1], the same in every channel."""
    shape = (*PHANTOM_SHAPE[:2], max(PHANTOM_SHAPE[2], at_least))
    image, _ = make_phantom_case(np.random.default_rng(0), shape=shape, orientation="RAS")
    planes = image.array.T.astype(np.float32)
    planes = (planes - planes.min()) / (planes.max() - planes.min())
    return np.repeat(planes[:, None], num_channels, axis=1)
