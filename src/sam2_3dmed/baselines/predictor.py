"""A volume in, its mask out, on the same grid: sliding windows over patches."""

from collections.abc import Iterator, Mapping
from math import ceil, prod
from threading import Event
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.baselines.grid import resample_image, resampled_shape, thick_axis
from sam2_3dmed.baselines.recipe import PatchSpec
from sam2_3dmed.config import InferenceConfig, Plan
from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.inference.interface import PredictOptions, WithoutAuxiliary, refuse_boxes, require_not_cancelled
from sam2_3dmed.inference.logits_to_mask import slice_mask
from sam2_3dmed.inference.postprocess import require_known_classes
from sam2_3dmed.inference.predictor import fill_mask
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.slices import slice_spacing_mm
from sam2_3dmed.volume.volume import Volume


class PatchPredictor(WithoutAuxiliary):
    """A trained network, ready for volumes; a `Segmenter`."""

    def __init__(self, network: nn.Module, spec: PatchSpec, plan: Plan, config: InferenceConfig) -> None:
        require_known_classes(config, plan.labels.values())
        self.network = network
        self.spec = spec
        self.preprocessing = plan.preprocessing
        self.labels: Mapping[int, str] = plan.scheme
        self.num_channels = len(plan.channels)
        self.config = config

    def __call__(self, volume: Volume, **options: Unpack[PredictOptions]) -> Volume:
        """See `Segmenter`. Slices are finished after all patches have passed the network."""
        refuse_boxes(options.get("reference"))
        axis = self.preprocessing.slicing_axis
        image = self.preprocessing.slices(volume)
        logits = self._slice_logits(image, slice_spacing_mm(volume, axis), options.get("cancel"))
        log_odds = _log_odds if self.spec.has_background else lambda logits: logits
        return fill_mask(logits, volume, axis, self.labels, self.config, options, log_odds=log_odds)

    def predict_slices(self, image: NDArray[np.floating], spacing_mm: tuple[float, ...]) -> NDArray[np.integer]:
        """(D, C, H, W) in [0, 1] -> (D, H, W), as `LabelScheme.indexed` has it. spacing_mm: along (D, H, W)."""
        height, width = image.shape[-2:]
        scheme = LabelScheme.of(self.labels).indexed
        classes = np.empty((len(image), height, width), dtype=np.min_scalar_type(max(scheme)))
        for index, logits in self._slice_logits(image, spacing_mm):
            classes[index] = slice_mask(logits, height, width, scheme).cpu().numpy()
        return classes

    def num_windows(self, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> int:
        """The number of patches that cover a volume (D, H, W)."""
        sizes = resampled_shape(shape, spacing_mm, self.spec.spacing_mm)
        return prod(
            ceil(max(0, size - side) / max(1, int(side * (1 - self.config.overlap)))) + 1
            for size, side in zip(sizes, self.spec.patch, strict=True)
        )

    def _slice_logits(
        self, image: NDArray[np.floating], spacing_mm: tuple[float, ...], cancel: Event | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The logits (K, h, w) of each slice, relative to the background's, in plane on the common grid.

        Along D they are interpolated linearly, as `argmax_mask` does in plane, so that no array of K channels has the
        size of the volume on its own grid.
        """
        depth, (d, h, w) = len(image), resampled_shape((len(image), *image.shape[2:]), spacing_mm, self.spec.spacing_mm)
        thick = thick_axis(spacing_mm, self.spec.spacing_mm)
        logits = self._volume_logits(resample_image(self.spec.normalise(image), (d, h, w), thick), cancel)
        for index in range(depth):
            at = min(max((index + 0.5) * d / depth - 0.5, 0.0), d - 1.0)
            low = int(at)
            plane = logits[:, low]
            if at > low:
                plane = torch.lerp(plane, logits[:, low + 1], at - low)
            yield index, plane

    @torch.inference_mode()
    def _volume_logits(self, image: NDArray[np.float32], cancel: Event | None) -> Tensor:
        """(C, D, H, W) -> (K, D, H, W) float32, relative to the background's."""
        self.network.eval()
        volume = torch.from_numpy(np.ascontiguousarray(image))[None]
        logits = self._pass(volume, cancel)
        if self.config.flips:
            logits = (logits + self._pass(volume.flip(-1), cancel).flip(-1)) / 2
        return logits[0, 1:] - logits[0, :1] if self.spec.has_background else logits[0]

    def _pass(self, volume: Tensor, cancel: Event | None) -> Tensor:
        from monai.inferers import sliding_window_inference

        device = next(self.network.parameters()).device

        def network(patches: Tensor) -> Tensor:
            require_not_cancelled(cancel)
            logits: Tensor = self.network(patches).float()
            return logits

        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(self.config.precision, device)):
            logits: Tensor = sliding_window_inference(
                volume,
                self.spec.patch,
                self.config.batch_size or (4 if device.type == "cuda" else 1),
                network,
                overlap=self.config.overlap,
                mode="gaussian",
                sw_device=device,
                device="cpu",  # a whole volume of logits may not fit beside the network
            )
        return logits


def _log_odds(logits: Tensor) -> Tensor:
    """The log-odds of the softmax, from logits (K, h, w) relative to the background's."""
    every = torch.cat([torch.zeros_like(logits[:1]), logits])
    others = [torch.cat([every[:k], every[k + 1 :]]).logsumexp(dim=0) for k in range(1, len(every))]
    return logits - torch.stack(others)
