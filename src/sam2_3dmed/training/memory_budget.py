"""`--gpu-memory 8`: the fastest way to take a step within a memory, with the same gradients."""

import logging
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.data.slabs import Slabs
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.free_memory import free_bytes
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.training.distributed import use_bf16
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.memory_estimator import Step, counted_bytes, seen_bytes

GB = 10**9
OVERHEAD = 0.7 * GB
"""What a process takes of a GPU before the first tensor: the driver's context, the libraries' work spaces. Assumed."""
MARGIN = 0.1
"""Share of what is left that fragments and operations' own needs may take, where bytes are counted. Assumed."""

logger = logging.getLogger(__name__)


class MemoryStrategy(NamedTuple):
    """A way to take a step. checkpointing, encoder_slices: as in `TrainingConfig`."""

    slabs: int
    """In a pass."""
    checkpointing: bool
    encoder_slices: int | None

    def __str__(self) -> str:
        slices = "slices checkpointed" if self.checkpointing else "no checkpointing"
        encoded = f"{self.encoder_slices} slices" if self.encoder_slices else "all slices"
        return f"{self.slabs} slabs in a pass, {slices}, {encoded} encoded at once"


# From fast to lean. A pass of fewer slabs costs less time than computing slices twice, so it is tried before.
_WAYS = ((False, None), (False, 4), (True, 4), (True, 1))
LEANEST = MemoryStrategy(1, *_WAYS[-1])


def fastest_strategy(
    bytes_of: Callable[[MemoryStrategy], float], num_slabs: int, budget: float
) -> MemoryStrategy | None:
    """The fastest strategy that fits: as many slabs in a pass as possible; fewer slabs come before checkpointing.

    Args:
        bytes_of: the bytes that a strategy takes.
        num_slabs: of a step in this process; only sizes that make the fewest passes are tried.
        budget: in bytes.
    """
    sizes = sorted({-(-num_slabs // passes) for passes in range(1, num_slabs + 1)})
    for how in _WAYS:

        def bytes_of_size(size: int, how: tuple[bool, int | None] = how) -> float:
            return bytes_of(MemoryStrategy(size, *how))

        if bytes_of_size(1) <= budget:  # first, since mostly it is all that must be asked of ways that are too fast
            return MemoryStrategy(sizes[bisect_right(sizes, budget, lo=1, key=bytes_of_size) - 1], *how)
    return None


def fit_to_memory(config: RunConfig, plan: Plan, predictor: Predictor, gigabytes: float, ranks: int = 1) -> RunConfig:
    """The recipe with the fastest memory strategy that fits; a log line names it.

    With a GPU each way is tried on it, and what is free there is a limit, too; else bytes are counted, as if in 32 bit.
    predictor: has the network and the run's slab. gigabytes: 10^9 bytes of the GPU. ranks: processes that share a
    batch.

    Raises:
        ConfigError: nothing fits; it says what would.
    """
    training, gpu = config.training, torch.cuda.is_available()
    network, slab_slices = predictor.network, predictor.slab_slices
    share = -(-training.batch_size // ranks)
    budget = gigabytes * GB - OVERHEAD
    if gpu:
        network.cuda()
        budget = min(budget, free_bytes(network.device) + sum(p.nbytes for p in network.parameters()))
    else:
        budget *= 1 - MARGIN
    step = Step(network, TotalLoss(config.loss), plan.num_classes)
    copies = 2 if training.ema_decay is None else 3

    @cache
    def bytes_of(way: MemoryStrategy, slices: int = slab_slices) -> float:
        network.save_memory(activation_checkpointing=way.checkpointing, slices_at_once=way.encoder_slices)
        slabs = empty_slabs(way.slabs, slices, len(plan.channels), network.encoder.image_size)
        kinds = [slabs, slabs.single_slices()] if training.single_slice_fraction > 0 else [slabs]
        if gpu:
            return max(
                seen_bytes(step, kind, copies=copies, bf16=use_bf16(training.precision, "cuda")) for kind in kinds
            )
        return max(counted_bytes(step, kind, copies=copies) for kind in kinds)

    way = fastest_strategy(bytes_of, share, budget)
    if way is None:
        raise ConfigError(what_would_fit(lambda slices: bytes_of(LEANEST, slices), slab_slices, budget, gigabytes))
    passes = -(-share // way.slabs)
    logger.info(
        "memory: in %g GB, %d slabs a step in %d pass(es): %s; %s %.1f GB",
        *(gigabytes, share, passes, way, "it took" if gpu else "counted in 32 bit,", bytes_of(way) / GB),
    )
    changes = {
        "grad_accum_steps": passes,
        "activation_checkpointing": way.checkpointing,
        "encoder_slices": way.encoder_slices,
    }
    return config.model_copy(update={"training": training.model_copy(update=changes)})


def empty_slabs(count: int, slices: int, channels: int, size: int) -> Slabs:
    """Slabs of a shape, with next to nothing in them."""
    return Slabs(
        torch.zeros(1).expand(count, slices, channels, size, size),
        torch.zeros(1, dtype=torch.int32).expand(count, slices, size, size),
        torch.arange(slices).expand(count, slices),
    )


def what_would_fit(leanest: Callable[[int], float], slab_slices: int, budget: float, gigabytes: float) -> str:
    """What to tell a user whose `gigabytes`, of which a step may take `budget` bytes, are too few.

    leanest: the bytes of the leanest step with slabs of so many slices.
    """
    needed = gigabytes + (leanest(slab_slices) - budget) / (1 - MARGIN) / GB
    text = f"--gpu-memory {gigabytes:g}: too little for any way to train with {slab_slices} slices a slab; "
    text += f"{needed:.2f} GB would do" if needed < float("inf") else "the GPU has no more"
    fewer = bisect_right(range(1, slab_slices), budget, key=leanest)
    return text + (f", or --set slab_slices={fewer}" if fewer else ", or a smaller model.size or model.image_size")
