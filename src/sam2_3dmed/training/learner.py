"""The single steps of training: passes, the optimiser, and the check of gradients."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.fabric import Fabric

from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.errors import TrainingError
from sam2_3dmed.training.monitoring import gradient_norms
from sam2_3dmed.training.trainable import Trainable


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
