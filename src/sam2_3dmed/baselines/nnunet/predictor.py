"""Prediction with nnU-Net, by a worker process in its environment."""

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np
import torch

from sam2_3dmed.baselines.nnunet.dataset import ENDING, to_values, write_channels
from sam2_3dmed.baselines.nnunet.environment import Worker
from sam2_3dmed.baselines.recipe import NnunetSpec
from sam2_3dmed.config import InferenceConfig, Plan
from sam2_3dmed.errors import ProcessError, VolumeError
from sam2_3dmed.inference.interface import PredictOptions, WithoutAuxiliary, refuse_boxes, require_not_cancelled
from sam2_3dmed.inference.logits_to_mask import writing_probabilities
from sam2_3dmed.inference.postprocess import postprocess, require_known_classes
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.slices import volume_to_slices
from sam2_3dmed.volume.volume import Volume


class NnunetPredictor(WithoutAuxiliary):
    """A trained nnU-Net; a `Segmenter`. Its process starts with the first volume and ends with this object."""

    def __init__(
        self, weights: Path, spec: NnunetSpec, plan: Plan, *, device: torch.device, config: InferenceConfig
    ) -> None:
        require_known_classes(config, plan.labels.values())
        self._scheme = plan.scheme
        self.labels: Mapping[int, str] = self._scheme
        self.num_channels = len(plan.channels)
        self.config = config
        self._axis = plan.slicing_axis
        self._device = device
        self._request = {
            **spec.model_dump(),
            "flips": config.flips,
            "overlap": config.overlap,
            "weights": str(weights.resolve()),
            "device": str(device),
        }
        self._started: tuple[Worker, Path] | None = None

    def __call__(self, volume: Volume, **options: Unpack[PredictOptions]) -> Volume:
        """See `Segmenter`. All slices are finished at once. Probabilities of all classes pass through memory."""
        refuse_boxes(options.get("reference"))
        probabilities, on_slice, cancel = options.get("probabilities"), options.get("on_slice"), options.get("cancel")
        require_not_cancelled(cancel)
        arrays = self._worker()[1] / "probabilities.npy" if probabilities else None
        mask, _ = self._ask(volume, probabilities=arrays and str(arrays), count=False)
        if on_slice is not None:
            on_slice(*[len(volume_to_slices(mask, self._axis))] * 2)
        require_not_cancelled(cancel)
        if probabilities and arrays:
            self._write_probabilities(np.load(arrays, mmap_mode="r"), volume, probabilities)
        postprocess(mask, self.labels, self.config)
        return mask

    def cost_of(self, volume: Volume) -> tuple[float, float | None, float | None]:
        """GFLOP of a prediction, and the most memory and GPU memory of the process so far, in MB."""
        _, answer = self._ask(volume, probabilities=None, count=True)
        return answer["gflop"], answer["peak_mb"], answer["gpu_peak_mb"]

    def _worker(self) -> tuple[Worker, Path]:
        """The process, and the folder of the files for it."""
        if self._started is None:
            stack = ExitStack()
            weakref.finalize(self, stack.close)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="nnunet-")))
            worker = stack.enter_context(Worker("predict", self._request, device=self._device.type))
            worker.answer()
            self._started = worker, folder
        return self._started

    def _ask(self, volume: Volume, **more: Any) -> tuple[Volume, Mapping[str, Any]]:
        """nnU-Net's mask in label values, and the rest of its answer."""
        if volume.num_channels != self.num_channels:
            raise VolumeError(f"the model takes {self.num_channels} channels, and this has {volume.num_channels}")
        worker, temporary = self._worker()
        mask_file = temporary / f"mask{ENDING}"
        images = write_channels(volume, temporary, "image")
        worker.send({"images": list(map(str, images)), "mask": str(mask_file), **more})
        try:
            answer = worker.answer()
        except ProcessError:  # the next volume starts a new process
            self._started = None
            raise
        return volume.with_array(to_values(read_label(mask_file).array, self._scheme)), answer

    def _write_probabilities(self, every: "np.ndarray[Any, Any]", volume: Volume, prefix: Path) -> None:
        """every: (K + 1, Z, Y, X), nnU-Net's order of axes; of regions K, without a background."""
        shares = every[-len(self.labels) :]
        of_classes = [volume_to_slices(volume.with_array(share.T), self._axis) for share in shares]
        with writing_probabilities(prefix, self.labels, volume, self._axis) as write:
            for index in range(len(of_classes[0])):
                planes = torch.from_numpy(np.stack([one[index] for one in of_classes]).astype(np.float32))
                write(index, torch.logit(planes, eps=1e-6))
