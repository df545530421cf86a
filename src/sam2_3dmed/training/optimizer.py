"""The optimiser, the schedule of its rate (appendix B), and the moving average of the weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.training.muon import Muon

_FEWEST_CHANNELS = 16


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
