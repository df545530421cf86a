"""A volume in, its mask out, on the same grid: sliding windows over patches."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.baselines.grid import resample_image, resampled_shape, thick_axis
from sam2_3dmed.baselines.recipe import PatchConfig, PatchSpec
from sam2_3dmed.config import InferenceConfig, Plan
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.inference.interface import refuse_boxes
from sam2_3dmed.inference.logits_to_mask import argmax_mask
from sam2_3dmed.inference.postprocess import PostProcessing
from sam2_3dmed.inference.predictor import empty_like
from sam2_3dmed.inference.probabilities import writing_probabilities
from sam2_3dmed.volume.slices import slice_spacing_mm, volume_to_slices
from sam2_3dmed.volume.volume import Volume


@dataclass(frozen=True)
class PatchOptions:
    """How a volume passes through the network.

    overlap: the share of a patch that the next one repeats; batch_size: patches at once, none: one, and four on a GPU;
    flips: the volume also passes mirrored along W, and the logits are averaged; bf16: autocast.
    """

    overlap: float = 0.5
    batch_size: int | None = None
    flips: bool = False
    bf16: bool = False


class PatchPredictor:
    """A trained network with all that a volume needs on its way through it; a `Segmenter`."""

    def __init__(
        self, network: nn.Module, spec: PatchSpec, plan: Plan, options: PatchOptions, post: PostProcessing
    ) -> None:
        self.network = network
        self.spec = spec
        self.preprocessing = plan.preprocessing
        self.labels = plan.labels
        self.options = options
        self.post = post
        self.post.require_known(self.labels.values())
        self._background = spec.has_background

    def __call__(self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None) -> Volume:
        """The mask of a volume, on its grid; see `Segmenter`."""
        refuse_boxes(reference)
        axis = self.preprocessing.slicing_axis
        image = self.preprocessing.slices(volume)
        mask = empty_like(volume, np.uint8 if max(self.labels) < 256 else np.uint16)
        values = volume_to_slices(mask, axis)
        height, width = values.shape[1:]
        files = writing_probabilities(probabilities, self.labels, volume, axis) if probabilities else nullcontext()
        with files as writer:
            for index, logits in self._slice_logits(image, slice_spacing_mm(volume, axis)):
                values[index] = argmax_mask(logits, height, width, tuple(self.labels)).cpu().numpy()
                if writer is not None:
                    writer.add(index, _log_odds(logits) if self._background else logits)
        self.post.apply(mask, self.labels)
        return mask

    def with_auxiliary(
        self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None
    ) -> tuple[Volume, Auxiliary]:
        """Never.

        Raises: ConfigError, since there are no such outputs.
        """
        raise ConfigError(f"{self.spec.title} makes no boundary maps and no relative positions")

    def predict_slices(self, image: NDArray[np.floating], spacing_mm: tuple[float, ...]) -> NDArray[np.integer]:
        """(D, C, H, W) in [0, 1] -> (D, H, W) class indices, 0 background. spacing_mm: along (D, H, W)."""
        height, width = image.shape[-2:]
        classes = np.empty((len(image), height, width), dtype=np.min_scalar_type(len(self.labels)))
        for index, logits in self._slice_logits(image, spacing_mm):
            classes[index] = argmax_mask(logits, height, width).cpu().numpy()
        return classes

    def num_windows(self, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> int:
        """How many patches a volume (D, H, W) is covered with."""
        sizes = resampled_shape(shape, spacing_mm, self.spec.spacing_mm)
        return prod(
            ceil(max(0, size - side) / max(1, int(side * (1 - self.options.overlap)))) + 1
            for size, side in zip(sizes, self.spec.patch, strict=True)
        )

    def _slice_logits(self, image: NDArray[np.floating], spacing_mm: tuple[float, ...]) -> Iterator[tuple[int, Tensor]]:
        """For each slice of the volume its logits relative to the background's, (K, h, w), on the common grid in plane.

        Between slices they are interpolated linearly, as `argmax_mask` does in plane: so nothing of K channels is as
        large as the volume on its own grid.
        """
        depth, (d, h, w) = len(image), resampled_shape((len(image), *image.shape[2:]), spacing_mm, self.spec.spacing_mm)
        thick = thick_axis(spacing_mm, self.spec.spacing_mm)
        logits = self._volume_logits(resample_image(self.spec.normalise(image), (d, h, w), thick))
        for index in range(depth):
            at = min(max((index + 0.5) * d / depth - 0.5, 0.0), d - 1.0)
            low = int(at)
            plane = logits[:, low]
            if at > low:
                plane = torch.lerp(plane, logits[:, low + 1], at - low)
            yield index, plane

    @torch.inference_mode()
    def _volume_logits(self, image: NDArray[np.float32]) -> Tensor:
        """(C, D, H, W) -> (K, D, H, W) float32, relative to the background's."""
        self.network.eval()
        volume = torch.from_numpy(np.ascontiguousarray(image))[None]
        logits = self._pass(volume)
        if self.options.flips:
            logits = (logits + self._pass(volume.flip(-1)).flip(-1)) / 2
        return logits[0, 1:] - logits[0, :1] if self._background else logits[0]

    def _pass(self, volume: Tensor) -> Tensor:
        from monai.inferers import sliding_window_inference

        device = next(self.network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.bf16):
            logits: Tensor = sliding_window_inference(
                volume,
                self.spec.patch,
                self.options.batch_size or (4 if device.type == "cuda" else 1),
                lambda patches: self.network(patches).float(),
                overlap=self.options.overlap,
                mode="gaussian",
                sw_device=device,
                device="cpu",  # a whole volume of logits may not fit beside the network
            )
        return logits


def make_patch_predictor(
    network: nn.Module, spec: PatchSpec, plan: Plan, recipe: PatchConfig, **options: Any
) -> PatchPredictor:
    """A predictor with what the run was told; `options` go before that.

    Raises: ConfigError if an option is none, or none of patches.
    """
    of_passes, of_post = ({field.name for field in fields(kind)} for kind in (PatchOptions, PostProcessing))
    known = of_passes | of_post
    if unknown := sorted(options.keys() - known):
        raise ConfigError(f"{spec.title} has no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    told = recipe.inference.model_dump(include=known & InferenceConfig.model_fields.keys()) | options
    return PatchPredictor(
        network,
        spec,
        plan,
        PatchOptions(**{name: value for name, value in told.items() if name in of_passes}),
        PostProcessing(**{name: value for name, value in told.items() if name in of_post}),
    )


def _log_odds(logits: Tensor) -> Tensor:
    """What the sigmoid turns into the softmax. logits: (K, h, w) relative to the background's."""
    every = torch.cat([torch.zeros_like(logits[:1]), logits])
    others = [torch.cat([every[:k], every[k + 1 :]]).logsumexp(dim=0) for k in range(1, len(every))]
    return logits - torch.stack(others)
