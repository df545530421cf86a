"""How large the gradients of each part are, and whether all numbers are still finite."""

import math

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.module import TrainingModule


class GradientNorms(Callback):
    """Counts the norm of each part's gradients before clipping; stops before a step that would spoil the weights."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        assert isinstance(pl_module, TrainingModule)
        norms = gradient_norms(pl_module.network)
        assert pl_module.latest is not None
        terms = {f"{name} loss": value for name, value in pl_module.latest._asdict().items()}
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


def gradient_norms(network: SAM2For3dMed) -> dict[str, Tensor]:
    """The Euclidean norm over all gradients of each part that has any."""
    parts: dict[str, nn.Module | None] = {
        "encoder": network.encoder,
        "srpp": network.srpp,
        "boundary": network.boundary,
        "segmentation": network.segmentation,
        "fusion": network.boundary_to_segmentation,
    }
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in parts.items()
        if part is not None
    }
    return {name: nn.utils.get_total_norm(found) for name, found in gradients.items() if found}
