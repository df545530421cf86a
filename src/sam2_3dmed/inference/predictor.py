"""A volume in, its mask out, on the same grid (readings 5, 6 and 10)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.inference.auxiliary import Auxiliary, WindowPositions
from sam2_3dmed.inference.postprocess import largest_component
from sam2_3dmed.inference.windows import Direction, Window, window_logits
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.volume.preprocess import Preprocessing
from sam2_3dmed.volume.slices import slices_to_volume
from sam2_3dmed.volume.volume import Volume


class Predictor:
    """A trained network with all that a volume needs on its way through it.

    labels: for class 1..K its value in a mask, ascending, and its name; window_slices: D; overlap: the share of a
    window that the next one repeats; direction: `both` averages the logits of the two; batch_size: windows at once;
    keep_largest: only each class's largest connected component stays; bf16: autocast.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        *,
        preprocessing: Preprocessing,
        labels: dict[int, str],
        window_slices: int,
        overlap: float = 0.5,
        direction: Direction = "both",
        batch_size: int = 4,
        keep_largest: bool = False,
        bf16: bool = False,
    ) -> None:
        self.network = network
        self.preprocessing = preprocessing
        self.labels = labels
        self.window_slices = window_slices
        self.overlap = overlap
        self.direction: Direction = direction
        self.batch_size = batch_size
        self.keep_largest = keep_largest
        self.bf16 = bf16
        self._values = np.array([0, *labels], dtype=np.uint8 if max(labels) < 256 else np.uint16)

    @classmethod
    def load(cls, run: str | Path, *, device: str | torch.device | None = None, **options: Any) -> "Predictor":
        """The model of a run folder. options: any of the constructor's, instead of what the run was told.

        Raises:
            UserError: not a run folder, or broken.
        """
        from sam2_3dmed.runs import load_predictor  # the one step up: this name is the public way in

        return load_predictor(Path(run), device=device, **options)

    def __call__(self, volume: Volume) -> Volume:
        """The mask of a volume, on its grid; uint8, or uint16 where a label value exceeds 255.

        Raises:
            VolumeError: the volume has another number of channels than the model.
        """
        return self._mask(self.predict_slices(self.preprocessing.slices(volume)), volume)

    def with_auxiliary(self, volume: Volume) -> tuple[Volume, Auxiliary]:
        """The mask of a volume, and what BD and SRPP said on the way; costs one more byte a voxel.

        Raises:
            VolumeError: as for the mask alone.
        """
        slices = self.preprocessing.slices(volume)
        boundary = None
        if self.network.boundary is not None:
            boundary = np.empty((len(slices), *slices.shape[-2:]), dtype=np.uint8)
        positions: list[WindowPositions] = []

        def note(window: Window, relative_position: Tensor) -> None:
            positions.append(WindowPositions(tuple(window.order), relative_position.float().cpu().numpy()))

        mask = self._mask(self.predict_slices(slices, boundary, note), volume)
        axis = self.preprocessing.slicing_axis
        map_of_boundaries = None if boundary is None else slices_to_volume(boundary, volume, axis)
        return mask, Auxiliary(map_of_boundaries, tuple(positions))

    def _mask(self, classes: NDArray[np.uint16], volume: Volume) -> Volume:
        mask = slices_to_volume(self._values[classes], volume, self.preprocessing.slicing_axis)
        return mask.with_array(largest_component(mask.array)) if self.keep_largest else mask

    def predict_slices(
        self,
        slices: NDArray[np.floating],
        boundary: NDArray[np.uint8] | None = None,
        on_positions: Callable[[Window, Tensor], None] = lambda window, positions: None,
    ) -> NDArray[np.uint16]:
        """(N, C, H0, W0) in [0, 1] -> (N, H0, W0) class indices, 0 background; never a K-channel volume.

        boundary: (N, H0, W0), is filled with P_bd; on_positions: see `window_logits`.
        """
        height, width = slices.shape[-2:]
        classes = np.empty((len(slices), height, width), dtype=np.uint16)
        self.network.eval()
        device = next(self.network.parameters()).device.type
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            logits = window_logits(
                self.network,
                slices,
                window_slices=self.window_slices,
                overlap=self.overlap,
                direction=self.direction,
                batch_size=self.batch_size,
                boundary=boundary is not None,
                on_positions=on_positions,
            )
            for index, slice_logits in enumerate(logits):
                classes[index] = decide(slice_logits[: len(self.labels)], height, width).cpu().numpy()
                if boundary is not None:
                    boundary[index] = boundary_map(slice_logits[len(self.labels) :], height, width).cpu().numpy()
        return classes


def decide(logits: Tensor, height: int, width: int) -> Tensor:
    """A slice's classes at its native size: the class of the highest logit if that is above 0, else background
    (reading 10).

    logits: (K, h, w). Returns: (height, width) int64, 0 background.
    """
    highest, index = _resized(logits, height, width).max(dim=0)
    return torch.where(highest > 0, index + 1, 0)


def boundary_map(logits: Tensor, height: int, width: int) -> Tensor:
    """P_bd of a slice at its native size: the largest probability over the classes, 0 to 255.

    logits: (K, h, w). Returns: (height, width) uint8.
    """
    highest = _resized(logits, height, width).amax(dim=0)
    return (highest.sigmoid() * 255).round().to(torch.uint8)


def _resized(logits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(logits.unsqueeze(0), (height, width), mode="bilinear", align_corners=False).squeeze(0)
