"""The optimiser and the schedule of its rate (appendix B)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2_3dmed.config import TrainingConfig


def make_optimizer(
    network: nn.Module, config: TrainingConfig, encoder_layers: Sequence[Sequence[nn.Parameter]] = ()
) -> Optimizer:
    """AdamW over the parameters that train, a group for each learning rate.

    encoder_layers: the encoder's parameters layer by layer, from the pixels up.
    """
    factors: dict[nn.Parameter, float] = {}
    for depth, layer in enumerate(reversed(encoder_layers)):
        factors |= dict.fromkeys(layer, config.encoder_rate * config.layer_decay**depth)
    groups: dict[float, list[nn.Parameter]] = {1.0: []}  # first, since the first group's rate is the one in the curves
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return AdamW(
        [{"params": parameters, "lr": config.learning_rate * factor} for factor, parameters in groups.items()],
        weight_decay=config.weight_decay,
        fused=True,
    )


@dataclass
class Cooldown:
    """A shorter way to the final rate, for a run that ends early: a cosine from step `start` on; none without steps."""

    start: int = 0
    steps: int = 0


def make_schedule(
    optimizer: Optimizer,
    config: TrainingConfig,
    single_slice_steps: int,
    window_steps: int,
    cooldown: Cooldown | None = None,
) -> LambdaLR:
    """The rate rises linearly, then falls as a cosine; the steps of single slices and those of windows each do so.

    cooldown: may be begun while the schedule is in use.
    """

    def factor(step: int) -> float:
        if cooldown is None or not cooldown.steps or step < cooldown.start:
            return planned(step)
        final = config.window_rate * config.final_learning_rate_fraction
        return final + (planned(cooldown.start) - final) * falling_cosine((step - cooldown.start) / cooldown.steps)

    def planned(step: int) -> float:
        if step < single_slice_steps:
            scale, total = 1.0, single_slice_steps
        else:
            scale, total, step = config.window_rate, window_steps, step - single_slice_steps
        return scale * learning_rate_factor(step, total, config.warmup_fraction, config.final_learning_rate_fraction)

    return LambdaLR(optimizer, factor)


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """What the learning rate is multiplied with at a step, 0 to `total_steps`."""
    warmup = warmup_fraction * total_steps
    rise = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    return rise * (final_fraction + (1 - final_fraction) * falling_cosine(step / max(total_steps, 1)))


def falling_cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at 1, where it stays."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
