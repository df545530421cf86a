"""A volume in, its mask out, on the same grid (readings 5, 6 and 10)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.inference.interface import Auxiliary, PredictOptions, SlabPositions, refuse_boxes, require_not_cancelled
from sam2_3dmed.inference.logits_to_mask import boundary_map, slice_mask, writing_probabilities
from sam2_3dmed.inference.postprocess import postprocess, require_known_classes
from sam2_3dmed.inference.slabs import OnPositions, Slab, slab_logits
from sam2_3dmed.inference.stream import stream_logits
from sam2_3dmed.inference.tta import Forward, Slices, compile_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.prompts import Prompts, box_on_largest, boxes_from_stack, boxes_where_drawn
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import SlicingAxis, volume_to_slices
from sam2_3dmed.volume.volume import Volume, describe_difference


@dataclass(eq=False)
class Predictor:
    """A trained network, ready for volumes; a `Segmenter`.

    Raises: ConfigError if `config` names an unknown class, or a mode that a promptable network does not have.
    """

    network: SAM2For3dMed
    _: KW_ONLY
    preprocessing: Preprocessing
    labels: Mapping[int, str]
    slab_slices: int
    config: InferenceConfig

    def __post_init__(self) -> None:
        require_known_classes(self.config, self.labels.values())
        if self.config.mode != "stream" and self.network.promptable:
            raise ConfigError("inference.mode: only a stream goes from the prompt to all slices")

    @property
    def num_channels(self) -> int:
        return len(self.preprocessing.normalisation)

    def __call__(self, volume: Volume, **options: Unpack[PredictOptions]) -> Volume:
        """See `Segmenter`."""
        return self._predict(volume, options)

    def with_auxiliary(self, volume: Volume, **options: Unpack[PredictOptions]) -> tuple[Volume, Auxiliary]:
        """See `Segmenter`. The boundary map takes one more byte a voxel."""
        boundary = None if self.network.boundary is None else empty_like(volume, np.uint8)
        positions: list[SlabPositions] = []

        def note(slab: Slab, relative_position: Tensor) -> None:
            positions.append(SlabPositions(tuple(slab.order), relative_position.float().cpu().numpy()))

        mask = self._predict(volume, options, boundary, note)
        return mask, Auxiliary(boundary, tuple(positions))

    def predict_slices(
        self,
        slices: Slices,
        on_positions: OnPositions = lambda *_: None,
        *,
        reference: NDArray[np.integer] | None = None,
    ) -> NDArray[np.integer]:
        """Class indices (N, H0, W0), 0 background, of slices (N, C, H0, W0) in [0, 1]: see `LabelScheme.indexed`.

        reference: the true class indices, (N, H0, W0), for a network that takes boxes. A promptable network gets one
            box, on the slice with most of its class.
        """
        height, width = slices.shape[-2:]
        scheme = LabelScheme.of(self.labels).indexed
        classes = np.empty((len(slices), height, width), dtype=np.min_scalar_type(max(scheme)))
        prompts = None
        if self.network.needs_reference and reference is not None:
            values = range(1, len(self.labels) + 1)
            every = self.network.box_every
            prompts = boxes_from_stack(reference, values, every) if every else box_on_largest(reference, values)
        logits = self._logits(slices, on_positions, prompts=prompts)
        for index, of_slice in logits:
            classes[index] = slice_mask(of_slice, height, width, scheme).cpu().numpy()
        return classes

    def _predict(
        self,
        volume: Volume,
        options: PredictOptions,
        boundary: Volume | None = None,
        on_positions: OnPositions = lambda *_: None,
    ) -> Volume:
        """boundary: a volume to fill with the boundary map."""
        maps = self._logits(
            self.preprocessing.stack(volume),
            on_positions,
            boundary=boundary is not None,
            prompts=self._prompts(volume, options.get("reference")),
            cancel=options.get("cancel"),
        )
        axis = self.preprocessing.slicing_axis
        return fill_mask(maps, volume, axis, self.labels, self.config, options, boundary=boundary)

    def _logits(self, slices: Slices, on_positions: OnPositions, **options: Any) -> Iterator[tuple[int, Tensor]]:
        """options: of `Forward`."""
        self.network.eval()
        return slice_logits(Forward(self.network, slices, self.config, **options), self.slab_slices, on_positions)

    def _prompts(self, volume: Volume, reference: Volume | None) -> Prompts | None:
        """The prompts of all slices; None for a network without prompts."""
        if not self.network.needs_reference:
            refuse_boxes(reference)
            return None
        if reference is None:
            raise ConfigError("this model takes boxes, and there is no reference to draw them around")
        if difference := describe_difference(volume, reference):
            raise VolumeError(f"the reference is not on the grid of the volume: {difference}")
        if reference.array.any() and not np.isin(reference.array, tuple(self.labels)).any():
            raise VolumeError(f"the reference holds none of the classes' values, {', '.join(map(str, self.labels))}")
        # By the axes of the volume, in case the two affines differ in rounding.
        on_grid = volume_to_slices(volume.with_array(reference.array), self.preprocessing.slicing_axis)
        values, every = tuple(self.labels), self.network.box_every
        return boxes_from_stack(on_grid, values, every) if every else boxes_where_drawn(on_grid, values)


@torch.inference_mode()
def slice_logits(
    forward: Forward, slab_slices: int, on_positions: OnPositions = lambda *_: None
) -> Iterator[tuple[int, Tensor]]:
    """The index of each slice, once, and its logits (K, H/4, W/4) float32; (K, H/2, W/2) with shifts.

    Raises ConfigError if the config compiles and there is no compiler, DataError without room for a temporary file.
    """
    if forward.config.compile:
        compile_network(forward.network)
    logits_of = stream_logits if forward.config.mode == "stream" else slab_logits
    yield from logits_of(forward, slab_slices, on_positions)


def fill_mask(
    maps: Iterable[tuple[int, Tensor]],
    volume: Volume,
    axis: SlicingAxis,
    labels: Mapping[int, str],
    config: InferenceConfig,
    options: PredictOptions,
    *,
    log_odds: Callable[[Tensor], Tensor] = lambda logits: logits,
    boundary: Volume | None = None,
) -> Volume:
    """The mask of a volume, after post-processing: in each voxel the class of the highest logit, if that is above 0.

    Of regions it is the last one whose logit is above 0.

    Args:
        maps: each slice's index, once, and its logits (K, h, w). With `boundary` the K maps of P_bd follow.
        log_odds: turns logits (K, h, w) into logits whose sigmoid is a probability.
        boundary: a volume to fill with the boundary map.
    """
    mask = empty_like(volume, np.uint8 if max(labels) < 256 else np.uint16)
    values = volume_to_slices(mask, axis)
    boundaries = None if boundary is None else volume_to_slices(boundary, axis)
    height, width = values.shape[1:]
    scheme = LabelScheme.of(labels)
    prefix, on_slice, cancel = options.get("probabilities"), options.get("on_slice"), options.get("cancel")
    files = writing_probabilities(prefix, labels, volume, axis) if prefix else nullcontext()
    require_not_cancelled(cancel)
    with files as write:
        for done, (index, of_slice) in enumerate(maps, start=1):
            logits = of_slice[: len(labels)]
            values[index] = slice_mask(logits, height, width, scheme).cpu().numpy()
            if boundaries is not None:
                boundaries[index] = boundary_map(of_slice[len(labels) :], height, width).cpu().numpy()
            if write is not None:
                write(index, log_odds(logits))
            if on_slice is not None:
                on_slice(done, len(values))
            require_not_cancelled(cancel)
    postprocess(mask, labels, config)
    return mask


def empty_like(volume: Volume, dtype: DTypeLike) -> Volume:
    """One value a voxel on the grid of a volume, in the same order in memory."""
    array = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    return volume.with_array(np.empty_like(array, dtype=dtype, subok=False))
