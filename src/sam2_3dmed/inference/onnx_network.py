"""The ONNX files of a model, and a network that onnxruntime runs. It has only what prediction in slabs needs."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.encoders.image_encoder import Features, resize
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.files.structured import parse_json
from sam2_3dmed.model.network import DecoderFeatures, Prediction

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1
"""Goes up whenever inputs, outputs or their meaning change."""
ENCODER_FILE = "encoder.onnx"
FEATURES = ("z", "stride8", "stride4")
"""The encoder's outputs and a slab's inputs."""


def slab_file(num_slices: int) -> str:
    """The file that decodes slabs of this many slices."""
    return f"slab_{num_slices}.onnx"


def require_onnx(*packages: Literal["onnx", "onnxruntime"]) -> None:
    """Raise ConfigError with the way to install the packages, unless they are there."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise ConfigError("ONNX needs the extra: pip install 'sam2-3dmed[export]'")


class OnnxRecord(BaseModel):
    """The record in the metadata_props of an ONNX file: text as it is, everything else as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["encoder", "slab"]
    format: int
    version: str  # of sam2-3dmed
    model_sha256: str  # of model.safetensors
    run_sha256: str  # of the run's record, `RunRecord.sha256`
    opset: int
    image_size: int
    slab_slices: int | None  # D; none for the encoder
    classes: dict[str, str]  # the name of each value in a mask
    outputs: tuple[str, ...]
    checked_on: str
    max_abs_difference: dict[str, float]  # per output, to PyTorch's
    max_rel_difference: dict[str, float]  # as a share of the largest absolute value of that output
    tolerance: float  # the highest relative difference that was allowed

    @property
    def file_name(self) -> str:
        return ENCODER_FILE if self.slab_slices is None else slab_file(self.slab_slices)

    def properties(self) -> dict[str, str]:
        """The record as metadata_props."""
        content = self.model_dump(mode="json").items()
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """The record in metadata_props. Raises ValueError or WeightsError if `export` has not written them."""
        fields = cls.model_fields
        texts = {"part", *(name for name, field in fields.items() if field.annotation is str)}
        return cls.model_validate(
            {
                key: value if key in texts else parse_json(value, key, WeightsError)
                for key, value in properties.items()
                if key in fields
            }
        )


def open_session(source: Path | bytes) -> "InferenceSession":
    """A model, or a file of one, ready to run on the CPU with the threads that torch has.

    Raises ConfigError without the extra, and WeightsError for a missing or damaged file.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    if isinstance(source, Path) and not source.is_file():
        raise WeightsError(f"{source}: no such file; sam2-3dmed export writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: they come as exceptions, too
    given = str(source) if isinstance(source, Path) else source
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each way to be damaged, without a common base
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{source if isinstance(source, Path) else 'ONNX'}: cannot be read: {reason}") from None


def read_record(session: "InferenceSession", path: Path) -> OnnxRecord:
    """The record of an open file. Raises WeightsError if there is none, or it has another format."""
    try:
        properties: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: not written by sam2-3dmed export") from None
    written = properties.get("format")
    if written is not None and written != str(FORMAT):
        version = properties.get("version", "another version")
        raise WeightsError(
            f"{path}: written by sam2-3dmed {version[:80]} in format {written[:80]}, and this version reads {FORMAT}; "
            "export the run again"
        )
    try:
        return OnnxRecord.from_properties(properties)
    except (ValueError, WeightsError):
        raise WeightsError(f"{path}: not written by sam2-3dmed export") from None


class OnnxNetwork:
    """Stands in for `SAM2For3dMed` in slabs mode. PyTorch resizes slices and blends logits; onnxruntime does the rest.

    Raises WeightsError if a file is missing, damaged, or of another run or other weights than these checksums.
    """

    device = torch.device("cpu")
    needs_reference = promptable = False

    def __init__(
        self,
        folder: Path,
        *,
        run_sha256: str,
        model_sha256: str | None = None,
        slab_slices: int,
        has_memory: bool = True,
    ) -> None:
        self.has_memory = has_memory
        self._folder = folder
        self._run_sha256 = run_sha256
        self._model_sha256 = model_sha256
        encoder, record = self._open(ENCODER_FILE)
        self._model_sha256 = record.model_sha256
        self.encoder = OnnxEncoder(encoder, record.image_size)
        self._slabs: dict[int, InferenceSession] = {}
        outputs = {output.name for output in self._slab(slab_slices).get_outputs()}
        self.srpp = True if "relative_position" in outputs else None
        self.boundary = True if "boundary" in outputs else None

    def eval(self) -> Self:
        """Change nothing: this network cannot be trained."""
        return self

    def require(self, config: InferenceConfig) -> None:
        """Raise ConfigError unless this network can do what the config asks for."""
        if config.mode != "slabs":
            raise ConfigError(f"mode {config.mode}: --backend onnxruntime has slabs only; PyTorch has both")
        for name, asked in (("precision bf16", config.precision == "bf16"), ("compile", config.compile)):
            if asked:
                raise ConfigError(f"{name}: --backend onnxruntime computes its files as they are; PyTorch has it")

    def project(self, features: Features) -> DecoderFeatures:
        """The same features: the slab file projects them."""
        return DecoderFeatures(*features)

    def decode_slabs(self, features: DecoderFeatures) -> Prediction:
        """Decode slabs, one after the other. Raises DataError if no file is for slabs of this length."""
        levels = Features(features.z, features.stride8, features.stride4)
        found = run_slabs(self._slab(features.z.shape[1]), levels)
        return Prediction(found["segmentation"], found.get("boundary"), found.get("relative_position"))

    def _slab(self, num_slices: int) -> "InferenceSession":
        if num_slices not in self._slabs:
            if self._slabs and not (self._folder / slab_file(num_slices)).is_file():
                lengths = " or ".join(str(length) for length in sorted(self._slabs))
                raise DataError(
                    f"{num_slices} slices are too few for slabs of {lengths}, and {self._folder} has no "
                    f"{slab_file(num_slices)}; export --length {num_slices} adds it"
                )
            self._slabs[num_slices], _ = self._open(slab_file(num_slices))
        return self._slabs[num_slices]

    def _open(self, name: str) -> "tuple[InferenceSession, OnnxRecord]":
        path = self._folder / name
        session = open_session(path)
        record = read_record(session, path)
        if record.file_name != name:
            raise WeightsError(f"{path}: holds what belongs in {record.file_name}")
        if record.run_sha256 != self._run_sha256:
            raise WeightsError(f"{path}: of another model or plan than config.yaml describes; export the run again")
        if self._model_sha256 not in (None, record.model_sha256):
            raise WeightsError(f"{path}: of other weights than the files beside it; export the run again")
        return session, record


@dataclass(frozen=True)
class OnnxEncoder:
    """Stands in for `ImageEncoder`."""

    session: "InferenceSession"
    image_size: int

    def __call__(self, slices: Tensor) -> Features:
        """slices: (B, D, C, H0, W0) in [0, 1], of any size, with the plan's C. Returns: the three feature levels."""
        batch, planes = slices.shape[:2], resize(slices.flatten(0, 1), self.image_size)
        levels = run_session(self.session, {"slices": planes})
        return Features(**{name: level.view(*batch, *level.shape[1:]) for name, level in levels.items()})


def run_slabs(session: "InferenceSession", features: Features) -> dict[str, Tensor]:
    """The outputs of a slab's file for several slabs, one after the other. Each level is (B, D, C, ., .)."""
    slabs = [run_session(session, dict(zip(FEATURES, levels, strict=True))) for levels in zip(*features, strict=True)]
    return {name: torch.stack([slab[name] for slab in slabs]) for name in slabs[0]}


def run_session(session: "InferenceSession", inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name; inputs that are contiguous are not copied."""
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(array) for name, array in zip(names, session.run(names, arrays), strict=True)}
