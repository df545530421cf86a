"""How large the gradients of each part are, and whether all numbers are still finite."""

import math
from collections.abc import Mapping

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.training.run_module import RunModule


class GradientNorms(Callback):
    """Counts the norm of each part's gradients before clipping; stops before a step that would spoil the weights."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        assert isinstance(pl_module, RunModule)
        norms = gradient_norms(pl_module.parts())
        terms = {f"{name} loss": value for name, value in pl_module.latest.items()}
        # One transfer for all: on a GPU each would wait for the step.
        values = torch.stack([*norms.values(), *terms.values()]).tolist()
        for name, value in zip(norms, values, strict=False):
            pl_module.means.add(f"gradient/{name}", value)
        names = [*(f"{name} gradient" for name in norms), *terms]
        wrong = [f"{name} {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        if wrong:
            raise TrainingError(
                f"epoch {trainer.current_epoch + 1}, step {trainer.global_step + 1}: not finite: {', '.join(wrong)}; "
                "the checkpoints are from before it; a lower training.learning_rate may help"
            )


def gradient_norms(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The Euclidean norm over all gradients of each part that has any."""
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in parts.items()
    }
    return {name: nn.utils.get_total_norm(found) for name, found in gradients.items() if found}
