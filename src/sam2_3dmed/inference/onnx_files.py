"""The ONNX files of a model: how they are called, what each says of itself, and how onnxruntime opens one."""

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
"""Goes up whenever inputs, outputs or what they mean change."""
ENCODER_FILE = "encoder.onnx"
FEATURES = ("z", "stride8", "stride4")
"""The encoder's outputs and a slab's inputs."""
NEEDS_THE_EXTRA = "ONNX needs the extra: pip install 'sam2-3dmed[export]'"


def slab_file(num_slices: int) -> str:
    """The file of the loop over slabs of so many slices."""
    return f"slab_{num_slices}.onnx"


def require_onnx(*packages: Literal["onnx", "onnxruntime"]) -> None:
    """Raise ConfigError, which says how to get them, unless the packages are installed."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise ConfigError(NEEDS_THE_EXTRA)


class OnnxRecord(BaseModel):
    """What an ONNX file says of itself, in its metadata_props: text as it is, all else as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["encoder", "slab"]
    format: int
    version: str
    """Of sam2-3dmed."""
    model_sha256: str
    """Of model.safetensors."""
    run_sha256: str
    """Of the model's build and the plan, as config.yaml has them."""
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
    """What the largest relative difference may be."""

    @property
    def file_name(self) -> str:
        """What the file is called."""
        return ENCODER_FILE if self.slab_slices is None else slab_file(self.slab_slices)

    def properties(self) -> dict[str, str]:
        """As metadata_props."""
        content = self.model_dump(mode="json").items()
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """From metadata_props.

        Raises:
            ValueError: they are none of ours.
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
    """What an open file says of itself.

    Raises:
        WeightsError: nothing, or it was written by a version that wrote them otherwise.
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
