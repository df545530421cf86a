"""A volume in, its mask out, by a worker process in nnU-Net's environment."""

import weakref
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sam2_3dmed.baselines.nnunet.dataset import ENDING, to_values, write_channels
from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.baselines.nnunet.process import Worker
from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig, NnunetRecord, NnunetSpec
from sam2_3dmed.config import Plan
from sam2_3dmed.errors import ConfigError, ProcessError, VolumeError
from sam2_3dmed.inference.auxiliary import Auxiliary
from sam2_3dmed.inference.interface import refuse_boxes
from sam2_3dmed.inference.postprocess import PostProcessing
from sam2_3dmed.inference.probabilities import writing_probabilities
from sam2_3dmed.run.run_folder import MODEL_FILE
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.slices import volume_to_slices
from sam2_3dmed.volume.volume import Volume

_OF_PASSES = ("flips", "overlap")


class NnunetPredictor:
    """A trained nnU-Net; a `Segmenter`. Its process starts with the first volume and ends with this object.

    weights: model.safetensors of a run. passes: flips and overlap.
    Raises: ConfigError without an environment, or for a class that is not there.
    """

    def __init__(
        self,
        weights: Path,
        spec: NnunetSpec,
        plan: Plan,
        *,
        device: torch.device,
        passes: Mapping[str, Any],
        post: PostProcessing,
    ) -> None:
        find_python()
        self.labels = plan.labels
        self.post = post
        self.post.require_known(self.labels.values())
        self._num_channels = len(plan.channels)
        self._axis = plan.slicing_axis
        self._device = device
        self._told = {
            **spec.model_dump(),
            **passes,
            "weights": str(weights.resolve()),
            "device": str(device),
        }
        self._started: tuple[Worker, Path] | None = None

    def __call__(self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None) -> Volume:
        """The mask of a volume, on its grid; see `Segmenter`. Probabilities pass through memory, all classes whole."""
        refuse_boxes(reference)
        arrays = self._worker()[1] / "probabilities.npy" if probabilities else None
        mask, _ = self._ask(volume, probabilities=arrays and str(arrays), count=False)
        if probabilities and arrays:
            self._write_probabilities(np.load(arrays, mmap_mode="r"), volume, probabilities)
        self.post.apply(mask, self.labels)
        return mask

    def cost_of(self, volume: Volume) -> tuple[float, float | None, float | None]:
        """GFLOP of the network for a volume, and the highest memory of its process, which is not ours, so far: resident
        and on its GPU, in MB; None where no one tells.
        """
        _, answer = self._ask(volume, probabilities=None, count=True)
        return answer["gflop"], answer["peak_mb"], answer["gpu_peak_mb"]

    def with_auxiliary(
        self, volume: Volume, probabilities: Path | None = None, *, reference: Volume | None = None
    ) -> tuple[Volume, Auxiliary]:
        """Never.

        Raises: ConfigError, since there are no such outputs.
        """
        raise ConfigError("nnU-Net makes no boundary maps and no relative positions")

    def _worker(self) -> tuple[Worker, Path]:
        if self._started is None:
            folder = TemporaryDirectory(prefix="nnunet-")
            worker = Worker("predict", self._told, device=self._device.type)
            weakref.finalize(self, _end, worker, folder)
            worker.answer()
            self._started = worker, Path(folder.name)
        return self._started

    def _ask(self, volume: Volume, **more: Any) -> tuple[Volume, Mapping[str, Any]]:
        """The mask as it comes from nnU-Net, and what else its process answers."""
        if volume.num_channels != self._num_channels:
            raise VolumeError(f"the model takes {self._num_channels} channels, and this has {volume.num_channels}")
        worker, temporary = self._worker()
        mask_file = temporary / f"mask{ENDING}"
        images = write_channels(volume, temporary, "image")
        worker.say({"images": list(map(str, images)), "mask": str(mask_file), **more})
        try:
            answer = worker.answer()
        except ProcessError:  # the next volume has a new one
            self._started = None
            raise
        return volume.with_array(to_values(read_label(mask_file).array, tuple(self.labels))), answer

    def _write_probabilities(self, every: "np.ndarray[Any, Any]", volume: Volume, prefix: Path) -> None:
        """every: (K + 1, Z, Y, X), as nnU-Net has axes."""
        of_classes = [
            volume_to_slices(volume.with_array(np.transpose(every[k], (2, 1, 0))), self._axis)
            for k in range(1, len(self.labels) + 1)
        ]
        with writing_probabilities(prefix, self.labels, volume, self._axis) as writer:
            for index in range(len(of_classes[0])):
                planes = torch.from_numpy(np.stack([one[index] for one in of_classes]).astype(np.float32))
                writer.add(index, torch.logit(planes, eps=1e-6))


def _end(worker: Worker, folder: "TemporaryDirectory[str]") -> None:
    worker.close()
    folder.cleanup()


def make_nnunet_predictor(
    weights: Path, spec: NnunetSpec, plan: Plan, recipe: NnunetConfig, device: torch.device, **options: Any
) -> NnunetPredictor:
    """A predictor with what the run was told; `options` go before that.

    Raises: ConfigError if an option is none of nnU-Net's.
    """
    of_post = {field.name for field in fields(PostProcessing)}
    if unknown := sorted(options.keys() - of_post - set(_OF_PASSES)):
        raise ConfigError(
            f"nnU-Net has no option {unknown[0]!r}; there are {', '.join(sorted({*of_post, *_OF_PASSES}))}"
        )
    told = recipe.inference.model_dump() | options
    return NnunetPredictor(
        weights,
        spec,
        plan,
        device=device,
        passes={name: told[name] for name in _OF_PASSES},
        post=PostProcessing(**{name: told[name] for name in of_post}),
    )


def load_run(folder: Path, record: NnunetRecord, device: torch.device, **settings: Any) -> NnunetPredictor:
    """The trained model of a run folder."""
    return make_nnunet_predictor(folder / MODEL_FILE, record.model, record.plan, record.recipe, device, **settings)
