"""The optimiser, the schedule of its rate (appendix B), and the moving average of the weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sam2_3dmed.config import TrainingConfig

_FEWEST_CHANNELS = 16
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes singular values from 0..1 near to 1 quickest (Jordan et al.)."""
_ITERATIONS = 5
_RMS = 0.2
"""Of an update's entries, which is about that of AdamW's (Liu et al.)."""


class Muon(AdamW):
    """AdamW, but groups with `matrices=True` go by Muon: a step of equal size in every direction of a weight matrix.

    Such a group's parameters have two dimensions or more; the first counts as rows, the others together as columns.
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with Nesterov's momentum; the rate as in Liu et al.
    2025, arXiv 2502.16982, so that one rate and one weight decay serve matrices and all else. torch has a Muon of its
    own, which takes no kernels of convolutions, computes in bf16, for which few CPUs have instructions, and is a second
    optimiser beside AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **options: Any) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        loss = None
        if closure is not None:  # first, since it may look at the groups: to set gradients to zero, to clip them
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.flatten(1).shape].append(parameter)
        for (rows, columns), alike in by_shape.items():
            directions = orthogonalised(torch.stack([self._momentum(parameter).flatten(1) for parameter in alike]))
            length = group["lr"] * _RMS * max(rows, columns) ** 0.5
            for parameter, direction in zip(alike, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.view_as(parameter), alpha=length)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The mean of the gradients so far, a step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(state["momentum"], self.momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, R, C) -> the same with all singular values between about 0.7 and 1.2, by Newton and Schulz's iteration."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    found = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        squares = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), found, beta=a)
    return found if matrices.shape[1] <= matrices.shape[2] else found.mT


def make_optimizer(
    network: nn.Module, config: TrainingConfig, encoder_layers: Sequence[Sequence[nn.Parameter]] = ()
) -> Optimizer:
    """What the recipe names, over the parameters that train, a group for each learning rate and kind of update.

    encoder_layers: from the pixels up.
    """
    factors: dict[nn.Parameter, float] = {}
    for depth, layer in enumerate(reversed(encoder_layers)):
        factors |= dict.fromkeys(layer, config.encoder_rate * config.layer_decay**depth)
    matrices = _weight_matrices(network) if config.optimizer == "muon" else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups[factors.get(parameter, 1.0), parameter in matrices].append(parameter)
    # The first group's rate is the one in the curves: that of what is not in the encoder.
    described = [
        {"params": parameters, "lr": config.learning_rate * factor, "matrices": of_matrices}
        for (factor, of_matrices), parameters in sorted(groups.items(), key=lambda item: item[0][0] != 1.0)
    ]
    if config.optimizer == "sgd":
        return SGD(described, weight_decay=config.weight_decay, momentum=0.99, nesterov=True)
    kind = Muon if config.optimizer == "muon" else AdamW
    return kind(described, weight_decay=config.weight_decay, fused=True)


def _weight_matrices(network: nn.Module) -> set[nn.Parameter]:
    """The weights of linear layers and convolutions between many channels: what Muon is for.

    Fewer than 16 channels on a side, as in depthwise kernels and where pixels come in, leave few directions, and a step
    of equal size in each of them follows noise.
    """
    layers = (module for module in network.modules() if isinstance(module, nn.Linear | _ConvNd))
    weights = (layer.get_parameter("weight") for layer in layers)
    return {weight for weight in weights if min(weight.shape[:2]) >= _FEWEST_CHANNELS}


def falling_cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at 1, where it stays."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Cooldown:
    """A shorter way to the final rate, for a run that ends early: a cosine from step `start` on; none without steps."""

    start: int = 0
    steps: int = 0


def make_schedule(
    optimizer: Optimizer,
    config: TrainingConfig,
    single_slice_steps: int,
    slab_steps: int,
    cooldown: Cooldown | None = None,
    falling: Callable[[float], float] = falling_cosine,
) -> LambdaLR:
    """The rate rises linearly, then falls; the steps of single slices and those of slabs each do so.

    cooldown: may be begun while the schedule is in use. falling: from 1 at progress 0 to 0 at 1.
    """
    shape = config.warmup_fraction, config.final_learning_rate_fraction, falling

    def planned(step: int) -> float:
        if step < single_slice_steps:
            return learning_rate_factor(step, single_slice_steps, *shape)
        return config.slab_rate * learning_rate_factor(step - single_slice_steps, slab_steps, *shape)

    def factor(step: int) -> float:
        if cooldown is None or not cooldown.steps or step < cooldown.start:
            return planned(step)
        final = config.slab_rate * config.final_learning_rate_fraction
        return final + (planned(cooldown.start) - final) * falling_cosine((step - cooldown.start) / cooldown.steps)

    return LambdaLR(optimizer, factor)


def learning_rate_factor(
    step: int,
    total_steps: int,
    warmup_fraction: float,
    final_fraction: float,
    falling: Callable[[float], float] = falling_cosine,
) -> float:
    """What the learning rate is multiplied with at a step, 0 to `total_steps`."""
    warmup = warmup_fraction * total_steps
    rise = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    return rise * (final_fraction + (1 - final_fraction) * falling(step / max(total_steps, 1)))


class EMA:
    """A moving average of the weights that train. What is frozen takes no memory and keeps its last bit.

    decay: what stays of the average in a step. The first steps keep less, (1 + step) / (10 + step), or an early average
    would be little but the weights it began with.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.weights = trained_weights(module)
        """The average."""
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def update(self, step: int) -> None:
        """Take in the weights after a step of the optimiser, the first being 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), self._trained, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average is in the module, and afterwards the weights in training again."""
        in_training = trained_weights(self.module)
        self.module.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            self.module.load_state_dict(in_training, strict=False)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights that train."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
