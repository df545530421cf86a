"""The optimiser and the schedule of its rate (appendix B)."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2_3dmed.config import TrainingConfig


def make_optimizer(network: nn.Module, config: TrainingConfig) -> Optimizer:
    """AdamW over the parameters that train."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainingConfig, single_slice_steps: int, window_steps: int) -> LambdaLR:
    """The rate rises linearly, then falls as a cosine; the steps of single slices and those of windows each do so."""

    def factor(step: int) -> float:
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
    progress = min(1.0, step / max(total_steps, 1))
    return rise * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
