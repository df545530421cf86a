"""Comparison of ONNX files with PyTorch on slices of a real volume."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.phantom import PHANTOM_SHAPE, make_phantom_case
from sam2_3dmed.encoders.image_encoder import Features, resize
from sam2_3dmed.errors import DataError, UserError, WeightsError
from sam2_3dmed.inference.inputs import find_inputs
from sam2_3dmed.inference.onnx_network import open_session, run_session, run_slabs
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.run.run_folder import remembered_data
from sam2_3dmed.volume.files import read_channels
from sam2_3dmed.volume.preprocess import Preprocessing, SliceStack

TOLERANCE = 1e-3  # far above rounding, far below what changes a mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Differences:
    """Largest absolute difference of each output, and its ratio to the output's largest absolute value."""

    absolute: dict[str, float]
    relative: dict[str, float]

    @classmethod
    def between(cls, onnx: Mapping[str, Tensor], pytorch: Iterable[Tensor]) -> "Differences":
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
    session = open_session(model, torch.get_num_threads())
    return Differences.between(run_session(session, {"slices": planes}), (level.squeeze(0) for level in expected))


def check_slab(model: bytes, network: SAM2For3dMed, slices: NDArray[np.float32], length: int) -> Differences:
    """Compare all outputs on three slabs: the first slices, the middle ones, and these reversed."""
    middle = (len(slices) - length) // 2
    slabs = np.stack([slices[:length], slices[middle : middle + length], slices[middle : middle + length][::-1]])
    with torch.inference_mode():
        features: Features = network.encoder(torch.from_numpy(slabs))
        expected = [part for part in network.decode(features) if part is not None]
    return Differences.between(run_slabs(open_session(model, torch.get_num_threads()), features), expected)


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
