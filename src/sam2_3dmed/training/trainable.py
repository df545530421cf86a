"""What trains, the seam between the training loop and a system with its network, loss and predictor; and its steps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.encoders.precision import pad_short_stacks, use_bf16
from sam2_3dmed.errors import TrainingError
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.training.distributed import gather
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.loader import Division, Part
from sam2_3dmed.training.loggers import Slice
from sam2_3dmed.training.monitoring import EpochMeans, gradient_norms
from sam2_3dmed.training.optimizer import EMA, Cooldown, falling_cosine, make_optimizer, make_schedule
from sam2_3dmed.volume.label_scheme import LabelScheme

MONITORED = "validation/dice"
"""What early stopping and the best checkpoint go by: the mean over classes and cases of whole volumes."""


@dataclass
class Progress:
    """What is done of a run."""

    epoch: int = 0
    step: int = 0
    """Of the optimiser."""
    passes: int = 0
    """Through the network, within the epoch."""


class Trainable(nn.Module, ABC):
    """The network of a predictor, which learns, and is validated on volumes with the real predictor and metric.

    Args:
        predictor: has the `network`, whose weights are all that a checkpoint holds, and the `labels`.
        loader: its batches; the batch sampler is a `Division`.
    """

    def __init__(
        self, predictor: Any, loader: Any, *, validation: Sequence[CachedCase], config: TrainingConfig
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.network: nn.Module = predictor.network
        self.loader = loader
        self.division: Division = loader.batch_sampler
        self.class_names: tuple[str, ...] = tuple(predictor.labels.values())
        self.scheme = LabelScheme.of(predictor.labels).indexed
        """What the labels of prepared cases mean."""
        self.validation = validation
        self.config = config
        self.single_slice_steps = 0
        """The first steps, in which every slice is a slab of its own."""
        self.has_teacher = False
        """Whether the average of the weights becomes the `teacher`."""
        self.features: FeatureCache | None = None
        """Gives the features of slabs of views."""
        self.encoder_layers: Sequence[Sequence[nn.Parameter]] = ()
        """From the pixels up; for rates of their own."""
        self.falling: Callable[[float], float] = falling_cosine
        """How the rate falls; see `make_schedule`."""
        self.cooldown = Cooldown()
        self.teacher: EMA | None = None
        """The moving average of the weights, if there is one that teaches."""
        self.progress = Progress()
        self.means = EpochMeans()
        """Of this epoch so far."""
        self.latest: Mapping[str, Tensor] = {}
        """The total loss and its terms in the latest pass."""
        self.shown: Slice | None = None
        """The slice with most foreground of the first validation case."""

    @abstractmethod
    def losses(self, batch: Any, part: Part) -> Mapping[str, Tensor]:
        """`total` and the terms that curves show, as means over the slabs of a batch, which are those of a part."""

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts of the network; curves have the norm of the gradients of each."""

    @abstractmethod
    def predict_case(self, number: int) -> tuple[NDArray[np.integer], float]:
        """Class indices (D, H, W) of a validation case by the real predictor, and SRPP's error; nan without SRPP."""

    @abstractmethod
    def validation_seconds(self) -> float:
        """How long a validation of all cases takes, measured on a part of one."""

    def configure_optimizers(self) -> tuple[Optimizer, LambdaLR]:
        """The recipe's optimiser over all that trains, with the schedule of each part of the run (appendix B)."""
        optimizer = make_optimizer(self.network, self.config, self.encoder_layers)
        first = self.single_slice_steps
        slab_steps = self.config.epochs * self.division.steps - first
        return optimizer, make_schedule(optimizer, self.config, first, slab_steps, self.cooldown, self.falling)

    def forward(self, batch: Any) -> Tensor:
        """The loss of the coming pass of this process, such that its mean over processes and passes is the batch's."""
        part = self.division.part(self.progress.passes)
        losses = self.losses(batch, part)
        self.latest = {name: value.detach() for name, value in losses.items()}
        for name, value in self.latest.items():
            self.means.add(f"train/{name}", value, part.counted)
        return losses["total"] * part.weight

    @property
    def sees_single_slices(self) -> bool:
        """Whether each slice is still a slab of its own, without a memory."""
        return self.progress.step < self.single_slice_steps

    def validate(self, numbers: Sequence[int]) -> dict[str, float]:
        """Metrics of whole volumes over the cases of all processes, all of which must call this.

        numbers: the cases of this process.
        """
        mine = {number: self._scores(number) for number in numbers}
        scores = {number: case for part in gather(mine) for number, case in part.items()}
        *per_class, error = np.mean([scores[number] for number in sorted(scores)], axis=0)
        named = zip(self.class_names, per_class, strict=True)
        metrics = {f"{MONITORED}_{name}": float(value) for name, value in named}
        metrics[MONITORED] = float(np.mean(per_class))
        if not math.isnan(error):
            metrics["position_error/validation"] = float(error)
        return metrics

    def _scores(self, number: int) -> list[float]:
        """Dice of each class of a case, then the position error. Voxels to be ignored count nowhere."""
        case = self.validation[number]
        classes, error = self.predict_case(number)
        truth, classes = self.scheme.cut(case.label, classes)
        if number == 0:
            index = int(np.argmax((truth > 0).sum(axis=(1, 2))))
            masks = (self.scheme.numbers(part[index]) for part in (truth, classes))
            self.shown = Slice(np.array(case.image[index]), *masks)
        holds = self.scheme.holds
        return [*(dice(holds(classes, value), holds(truth, value)) for value in self.scheme), error]


class Learner:
    """A trainable with its optimiser, on the device of this process.

    before_step: called when the gradients of a step are complete, before they are clipped.
    """

    def __init__(self, trainable: Trainable, fabric: Fabric, before_step: Callable[["Learner"], None]) -> None:
        self.trainable = trainable
        self.config = trainable.config
        self.fabric = fabric
        self.before_step = before_step
        self.bf16 = use_bf16(self.config.precision, fabric.device.type)
        trainable.to(fabric.device)
        trainable.network.train()
        if self.bf16 and fabric.device.type == "cpu":
            pad_short_stacks(trainable.network)
        self.optimizer, self.schedule = trainable.configure_optimizers()
        self.module = fabric.setup_module(trainable)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run. Casts of weights are not kept, so that gradients add up in 32 bit."""
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def take_pass(self, batch: Any) -> bool:
        """Learn from this process's part of a batch. Returns: whether the optimiser has stepped."""
        trainable, progress = self.trainable, self.trainable.progress
        passes_a_step = self.config.grad_accum_steps
        last = (progress.passes + 1) % passes_a_step == 0
        batch = self.fabric.to_device(batch)
        if progress.passes % passes_a_step == 0:
            self.optimizer.zero_grad()
        with self.fabric.no_backward_sync(self.module, enabled=not last):
            with self.autocast():
                loss = self.module(batch)
            self.fabric.backward(loss / passes_a_step)
        trainable.means.add("learning_rate", self.optimizer.param_groups[0]["lr"])
        progress.passes += 1
        if last:
            self._step()
        return last

    def _step(self) -> None:
        self.before_step(self)
        if (norm := self.config.clip_gradient_norm) is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.schedule.step()
        self.trainable.progress.step += 1


def check_gradients(learner: Learner) -> None:
    """Count the norm of each part's gradients; a TrainingError if one or a loss is not finite."""
    trainable = learner.trainable
    norms = gradient_norms(trainable.parts())
    # One transfer for all: on a GPU each would wait for the step.
    values = torch.stack([*norms.values(), *trainable.latest.values()]).tolist()
    for name, value in zip(norms, values, strict=False):
        trainable.means.add(f"gradient/{name}", value)
    names = [f"{name} gradient" for name in norms] + [f"{name} loss" for name in trainable.latest]
    wrong = [f"{name} {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
    if wrong:
        progress = trainable.progress
        raise TrainingError(
            f"epoch {progress.epoch + 1}, step {progress.step + 1}: not finite: {', '.join(wrong)}; "
            "the checkpoints are from before it; a lower training.learning_rate may help"
        )
