"""A volume in, its mask out, on the same grid (readings 5, 6 and 10)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.inference.auxiliary import Auxiliary, SlabPositions
from sam2_3dmed.inference.interface import Segmenter, refuse_boxes
from sam2_3dmed.inference.logits_to_mask import argmax_mask, boundary_map
from sam2_3dmed.inference.passes import PassOptions, slice_logits
from sam2_3dmed.inference.postprocess import PostProcessing
from sam2_3dmed.inference.probabilities import writing_probabilities
from sam2_3dmed.inference.slabs import Slab
from sam2_3dmed.inference.tta import SliceStack
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.prompts import boxes_around
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import volume_to_slices
from sam2_3dmed.volume.volume import Volume, describe_difference

OnPositions = Callable[[Slab, Tensor], None]


def _ignore(slab: Slab, positions: Tensor) -> None:
    """Nobody asked for the positions."""


class Predictor:
    """A trained network with all that a volume needs on its way through it.

    labels: for class 1..K its value in a mask, ascending, and its name; passes: how the slices pass through the
    network; post: what is done to the mask then.

    Raises: ConfigError if `post` names a class that is not among the labels.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        *,
        preprocessing: Preprocessing,
        labels: dict[int, str],
        passes: PassOptions,
        post: PostProcessing | None = None,
    ) -> None:
        self.network = network
        self.preprocessing = preprocessing
        self.labels = labels
        self.passes = passes
        self.post = post or PostProcessing()
        self.post.require_known(labels.values())

    @classmethod
    def load(cls, run: str | Path, *, device: str | torch.device | None = None, **options: Any) -> Segmenter:
        """The model of a run folder, of whatever kind. options: of inference, instead of the run's.

        Raises:
            UserError: not a run folder, or broken.
        """
        from sam2_3dmed.run.run_folder import load_model  # the one step up: this name is the public way in

        return load_model(Path(run), device=device, **options)

    def __call__(self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None) -> Volume:
        """The mask of a volume, on its grid; uint8, or uint16 where a label value exceeds 255.

        probabilities: also write PROBABILITIES_CLASS.nii.gz for every class, see `writing_probabilities`. reference: a
        mask on the same grid, for a network that takes boxes, which are drawn around its classes.

        Raises:
            VolumeError: the volume has another number of channels than the model, or the reference lies on another
            grid. ConfigError: a reference is missing, or not asked for. UserError: the probabilities cannot be written.
        """
        return self._predict(volume, probabilities, reference)

    def with_auxiliary(
        self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None
    ) -> tuple[Volume, Auxiliary]:
        """The mask of a volume, and what BD and SRPP said on the way; costs one more byte a voxel.

        Raises:
            UserError: as for the mask alone.
        """
        boundary = None if self.network.boundary is None else empty_like(volume, np.uint8)
        positions: list[SlabPositions] = []

        def note(slab: Slab, relative_position: Tensor) -> None:
            positions.append(SlabPositions(tuple(slab.order), relative_position.float().cpu().numpy()))

        mask = self._predict(volume, probabilities, reference, boundary, note)
        return mask, Auxiliary(boundary, tuple(positions))

    def _predict(
        self,
        volume: Volume,
        probabilities: Path | None,
        reference: Volume | None,
        boundary: Volume | None = None,
        on_positions: OnPositions = _ignore,
    ) -> Volume:
        """boundary: a volume to be filled."""
        stack, axis = self.preprocessing.stack(volume), self.preprocessing.slicing_axis
        boxes = self._boxes_for(volume, reference)
        mask = empty_like(volume, np.uint8 if max(self.labels) < 256 else np.uint16)
        values = volume_to_slices(mask, axis)
        boundaries = None if boundary is None else volume_to_slices(boundary, axis)
        files = writing_probabilities(probabilities, self.labels, volume, axis) if probabilities else nullcontext()
        (height, width), num_classes = values.shape[1:], len(self.labels)
        with files as writer:
            for index, logits in self._logits(stack, boxes, boundaries is not None, on_positions):
                values[index] = argmax_mask(logits[:num_classes], height, width, tuple(self.labels)).cpu().numpy()
                if boundaries is not None:
                    boundaries[index] = boundary_map(logits[num_classes:], height, width).cpu().numpy()
                if writer is not None:
                    writer.add(index, logits[:num_classes])
        self.post.apply(mask, self.labels)
        return mask

    def predict_slices(
        self, slices: SliceStack, on_positions: OnPositions = _ignore, *, reference: NDArray[np.integer] | None = None
    ) -> NDArray[np.integer]:
        """(N, C, H0, W0) in [0, 1] -> (N, H0, W0) class indices, 0 background; never a K-channel volume.

        on_positions: gets P_pos, (D, D), of each slab, from a network that has SRPP. reference: the true class
        indices, (N, H0, W0), of which only a network that takes boxes sees anything.
        """
        height, width = slices.shape[-2:]
        classes = np.empty((len(slices), height, width), dtype=np.min_scalar_type(len(self.labels)))
        boxes = self._boxes(reference, range(1, len(self.labels) + 1))
        for index, logits in self._logits(slices, boxes, on_positions=on_positions):
            classes[index] = argmax_mask(logits, height, width).cpu().numpy()
        return classes

    def _boxes_for(self, volume: Volume, reference: Volume | None) -> Tensor | None:
        if not self.network.box_every:
            refuse_boxes(reference)
        if reference is None:
            return self._boxes(None, ())
        if difference := describe_difference(volume, reference):
            raise VolumeError(f"the reference is not on the grid of the volume: {difference}")
        if reference.array.any() and not np.isin(reference.array, tuple(self.labels)).any():
            raise VolumeError(f"the reference holds none of the classes' values, {', '.join(map(str, self.labels))}")
        # By the volume's own axes, in case the two differ in what they call theirs.
        on_grid = volume.with_array(reference.array)
        return self._boxes(volume_to_slices(on_grid, self.preprocessing.slicing_axis), tuple(self.labels))

    def _boxes(self, labels: NDArray[np.integer] | None, values: Sequence[int]) -> Tensor | None:
        """(N, K, 4), see model/boxes.py; None for a network that takes none.

        labels: (N, H0, W0); values: of class 1..K in it.
        """
        every = self.network.box_every
        if not every:
            return None
        if labels is None:
            raise ConfigError(f"this model takes boxes on one slice of {every}, and there is no reference to draw them")
        boxes = torch.full((len(labels), len(values), 4), torch.nan)
        for index in range(0, len(labels), every):
            boxes[index] = boxes_around(torch.from_numpy(labels[index].astype(np.int32)), values)
        return boxes

    def _logits(
        self, slices: SliceStack, boxes: Tensor | None, boundary: bool = False, on_positions: OnPositions = _ignore
    ) -> Iterator[tuple[int, Tensor]]:
        self.network.eval()
        return slice_logits(
            self.network, slices, self.passes, boundary=boundary, boxes=boxes, on_positions=on_positions
        )


def empty_like(volume: Volume, dtype: DTypeLike) -> Volume:
    """One value a voxel on the grid of a volume, in the same order in memory."""
    array = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    return volume.with_array(np.empty_like(array, dtype=dtype, subok=False))
