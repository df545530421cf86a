"""A network that onnxruntime runs. It has only what prediction in slabs needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.encoders.image_encoder import Features, resize
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.inference.onnx_files import ENCODER_FILE, FEATURES, OnnxRecord, open_session, read_record, slab_file
from sam2_3dmed.model.network import DecoderFeatures, Prediction

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxNetwork:
    """Stands in for `SAM2For3dMed` in slabs mode. PyTorch resizes slices and blends logits; onnxruntime does the rest.

    Args:
        folder: holds the files that `export` wrote.
        run_sha256: the checksum of the run that the files must be exports of.
        model_sha256: the checksum of its weights, if it is known.
        slab_slices: D.

    Raises:
        WeightsError: a file is missing, damaged, or of another model.
    """

    device = torch.device("cpu")
    box_every = 0

    def __init__(self, folder: Path, *, run_sha256: str, model_sha256: str | None = None, slab_slices: int) -> None:
        self._folder = folder
        self._run_sha256 = run_sha256
        self._model_sha256 = model_sha256
        encoder, record = self._open(ENCODER_FILE)
        self._model_sha256 = record.model_sha256
        self.num_classes = len(record.classes)
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

    def decode_projected(self, features: DecoderFeatures) -> Prediction:
        """Decode slabs, one after the other.

        Raises:
            DataError: no file is for slabs of this length.
        """
        session = self._slab(features.z.shape[1])
        names = [output.name for output in session.get_outputs()]
        levels = (features.z, features.stride8, features.stride4)
        slabs = [_run(session, FEATURES, slab) for slab in zip(*levels, strict=True)]
        found = {name: torch.stack(parts) for name, *parts in zip(names, *slabs, strict=True)}
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
        session = open_session(path, torch.get_num_threads())
        record = read_record(session, path)
        if record.file_name != name:
            raise WeightsError(f"{path}: holds what belongs in {record.file_name}")
        if record.run_sha256 != self._run_sha256:
            raise WeightsError(f"{path}: of another model or plan than config.yaml describes; export the run again")
        if self._model_sha256 not in (None, record.model_sha256):
            raise WeightsError(f"{path}: of other weights than the files beside it; export the run again")
        return session, record


class OnnxEncoder:
    """Stands in for `ImageEncoder`."""

    def __init__(self, session: "InferenceSession", image_size: int) -> None:
        self.image_size = image_size
        self._session = session

    def __call__(self, slices: Tensor) -> Features:
        """slices: (B, D, C, H0, W0) in [0, 1], of any size, with the plan's C. Returns: the three feature levels."""
        batch, planes = slices.shape[:2], resize(slices.flatten(0, 1), self.image_size)
        return Features(*(level.view(*batch, *level.shape[1:]) for level in _run(self._session, ["slices"], [planes])))


def _run(session: "InferenceSession", names: Sequence[str], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs; what is contiguous is not copied."""
    arrays = (np.ascontiguousarray(tensor.numpy()) for tensor in tensors)
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.from_numpy(output) for output in outputs]
