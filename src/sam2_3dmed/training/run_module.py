"""What the training of every system has in common, for Lightning: counts, validation of whole volumes, checkpoints."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.training.batch_sharding import Division
from sam2_3dmed.training.distributed import DistributedContext, gather
from sam2_3dmed.training.epoch_metrics import EpochMeans, merged
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.optimizer import Cooldown

MONITORED = "validation/dice"
"""What early stopping and the best checkpoint go by: the mean over classes and cases of whole volumes."""


class Slice(NamedTuple):
    """One slice of a validated volume."""

    image: NDArray[np.floating]
    """(C, H0, W0) in [0, 1]."""
    truth: NDArray[np.integer]
    """(H0, W0) class indices, as is the next."""
    predicted: NDArray[np.integer]


class RunModule(lightning.LightningModule, ABC):
    """A network that learns, and is validated on volumes with the real metric.

    class_names: of class 1..K. validation: the cases that the validation loader's numbers stand for. division: how
    batches are divided over processes and passes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        class_names: Sequence[str],
        validation: Sequence[CachedCase],
        config: TrainingConfig,
        division: Division,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names)
        self.validation = validation
        self.config = config
        self.division = division
        self.distributed = distributed or DistributedContext()
        self.steps_per_epoch = division.steps
        self.single_slice_steps = 0
        """How many steps come first in which every slice is a slab of its own."""
        self.features: FeatureCache | None = None
        """Where features of slabs of views come from."""
        self.cooldown = Cooldown()
        self.means = EpochMeans()
        """Of this epoch so far; whoever writes the curves empties it."""
        self.latest: Mapping[str, Tensor] = {}
        """The loss terms of the batch seen last."""
        self.shown: Slice | None = None
        """Of the volume validated first, the slice with most foreground."""
        self._scores: dict[int, list[float]] = {}

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts of the network, of which each has the norm of its gradients in the curves."""

    @abstractmethod
    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        """Class indices (D, H, W) of a validation case by the real predictor, and SRPP's error; nan without SRPP."""

    @abstractmethod
    def validation_seconds(self) -> float:
        """How long a validation of all cases takes, from a part of one."""

    @property
    def sees_single_slices(self) -> bool:
        """Whether each slice is still a slab of its own, without a memory."""
        return self.global_step < self.single_slice_steps

    def count_step(self, terms: Mapping[str, Tensor], count: int, counted: int) -> None:
        """Note the loss terms of a batch of `count` slabs, of which `counted` are not stand-ins."""
        self.latest = {name: value.detach() for name, value in terms.items()}
        for name, value in self.latest.items():
            self.means.add(f"train/{name}", value, count if counted else 0)
        self.means.add("learning_rate", self.optimizers().param_groups[0]["lr"])
        self.log("loss", self.latest["total"], on_step=True, on_epoch=False, prog_bar=True, logger=False)

    def validation_step(self, number: int, batch_idx: int) -> None:
        """One whole volume."""
        case = self.validation[number]
        classes, error = self.predict_case(number)
        truth = case.label
        scores = [dice(classes == k, truth == k) for k in range(1, len(self.class_names) + 1)]
        self._scores[number] = [*scores, error]
        if number == 0:
            index = int(np.argmax((truth > 0).sum(axis=(1, 2))))
            self.shown = Slice(*(np.array(part[index]) for part in (case.image, truth, classes)))

    def on_validation_epoch_end(self) -> None:
        """Means over cases, per class and over classes."""
        scores = {number: case for part in gather(self._scores) for number, case in part.items()}
        self._scores = {}
        *per_class, error = np.mean([scores[number] for number in sorted(scores)], axis=0)
        for name, value in zip(self.class_names, per_class, strict=True):
            self.log(f"validation/dice_{name}", float(value))
        self.log(MONITORED, float(np.mean(per_class)), prog_bar=True)
        if not math.isnan(error):
            self.log("position_error/validation", float(error))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By the norm of all gradients, as Lightning does, but also under autocast to bf16.

        There it refuses a fused optimiser, since such a one may undo a scaling of gradients; bf16 needs none.
        """
        if gradient_clip_val is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a run that goes on from here must know besides weights."""
        means = merged(gather(self.means.state_dict()))
        checkpoint["run"] = {"means": means, "cooldown": asdict(self.cooldown)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it again."""
        if self.distributed.first:  # of all processes
            self.means.load_state_dict(checkpoint["run"]["means"])
        vars(self.cooldown).update(checkpoint["run"]["cooldown"])
