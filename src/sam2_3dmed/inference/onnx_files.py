"""The ONNX files of a model: their names, the record in each, and opening them with onnxruntime."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sam2_3dmed.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1
"""Goes up whenever inputs, outputs or their meaning change."""
ENCODER_FILE = "encoder.onnx"
FEATURES = ("z", "stride8", "stride4")
"""The encoder's outputs and a slab's inputs."""
NEEDS_THE_EXTRA = "ONNX needs the extra: pip install 'sam2-3dmed[export]'"


def slab_file(num_slices: int) -> str:
    """The file that decodes slabs of this many slices."""
    return f"slab_{num_slices}.onnx"


def require_onnx(*packages: Literal["onnx", "onnxruntime"]) -> None:
    """Raise ConfigError with the way to install the packages, unless they are there."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise ConfigError(NEEDS_THE_EXTRA)


class OnnxRecord(BaseModel):
    """The record in the metadata_props of an ONNX file: text as it is, everything else as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["encoder", "slab"]
    format: int
    version: str
    """The version of sam2-3dmed."""
    model_sha256: str
    """The checksum of model.safetensors."""
    run_sha256: str
    """The checksum of the run's record, `RunRecord.sha256`."""
    opset: int
    image_size: int
    slab_slices: int | None
    """D; none for the encoder."""
    classes: dict[str, str]
    """The name of each value in a mask."""
    outputs: tuple[str, ...]
    checked_on: str
    max_abs_difference: dict[str, float]
    """Per output, to PyTorch's."""
    max_rel_difference: dict[str, float]
    """The same as a share of the largest absolute value of that output."""
    tolerance: float
    """The highest relative difference that was allowed."""

    @property
    def file_name(self) -> str:
        return ENCODER_FILE if self.slab_slices is None else slab_file(self.slab_slices)

    def properties(self) -> dict[str, str]:
        """The record as metadata_props."""
        content = self.model_dump(mode="json").items()
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """The record in metadata_props.

        Raises:
            ValueError: `export` has not written them.
        """
        fields = cls.model_fields
        texts = {"part", *(name for name, field in fields.items() if field.annotation is str)}
        return cls.model_validate(
            {key: value if key in texts else json.loads(value) for key, value in properties.items() if key in fields}
        )


def open_session(source: Path | bytes, num_threads: int) -> "InferenceSession":
    """A model, or a file of one, ready to run on the CPU.

    Raises:
        ConfigError: the extra is missing. WeightsError: no such file, or damaged.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    if isinstance(source, Path) and not source.is_file():
        raise WeightsError(f"{source}: no such file; sam2-3dmed export writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors: they come as exceptions, too
    given = str(source) if isinstance(source, Path) else source
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each way to be damaged, without a common base
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{source if isinstance(source, Path) else 'ONNX'}: cannot be read: {reason}") from None


def read_record(session: "InferenceSession", path: Path) -> OnnxRecord:
    """The record of an open file.

    Raises:
        WeightsError: there is none, or it has another format.
    """
    properties: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    written = properties.get("format")
    if written is not None and written != str(FORMAT):
        version = properties.get("version", "another version")
        raise WeightsError(
            f"{path}: written by sam2-3dmed {version} in format {written}, and this version reads {FORMAT}; "
            "export the run again"
        )
    try:
        return OnnxRecord.from_properties(properties)
    except (ValidationError, ValueError):
        raise WeightsError(f"{path}: not written by sam2-3dmed export") from None
