"""`--gpu-memory 8`: the fastest way to take a step within a memory, with the same gradients.

The memory of a step is measured on a GPU, or else counted on tensors without content.
"""

import logging
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.data.slabs import Slabs
from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.free_memory import free_bytes, is_out_of_memory
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import Prediction, SAM2For3dMed
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.slab_training import training_step

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

    num_slabs: of a step in this process; only sizes that make the fewest passes are tried. budget: in bytes.
    """
    sizes = sorted({-(-num_slabs // passes) for passes in range(1, num_slabs + 1)})
    for way in _WAYS:
        strategies = [MemoryStrategy(size, *way) for size in sizes]
        if bytes_of(strategies[0]) <= budget:  # first, since mostly it is all that must be asked of ways too fast
            return strategies[bisect_right(strategies, budget, lo=1, key=bytes_of) - 1]
    return None


def fit_to_memory(config: RunConfig, plan: Plan, predictor: Predictor, gigabytes: float, ranks: int = 1) -> RunConfig:
    """The recipe with the fastest memory strategy that fits; a log line names it.

    With a GPU each way is tried on it, and what is free there is a limit, too; else bytes are counted, as if in 32 bit.

    predictor: has the network and the run's slab. ranks: processes that share a batch.

    Raises: ConfigError if nothing fits, with what would.
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
    averages = 2 if training.ema_decay is None else 3  # Adam's two, and that of the weights
    kept = averages * sum(p.nbytes for p in step.parameters() if p.requires_grad)
    bf16 = gpu and use_bf16(training.precision, "cuda")

    @cache
    def bytes_of(way: MemoryStrategy, slices: int = slab_slices) -> float:
        network.save_memory(activation_checkpointing=way.checkpointing, slices_at_once=way.encoder_slices)
        slabs = empty_slabs(way.slabs, slices, len(plan.channels), network.encoder.image_size)
        if config.loss.has_teacher:
            slabs = slabs._replace(weak=slabs.slices)
        kinds = [slabs, slabs.single_slices()] if training.single_slice_fraction > 0 else [slabs]
        return kept + max(seen_bytes(step, kind, bf16=bf16) if gpu else counted_bytes(step, kind) for kind in kinds)

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
    """The message for a user whose `gigabytes`, of which a step may take `budget` bytes, are too few.

    leanest: the bytes of the leanest step with slabs of so many slices.
    """
    needed = gigabytes + (leanest(slab_slices) - budget) / (1 - MARGIN) / GB
    text = f"--gpu-memory {gigabytes:g}: too little for any way to train with {slab_slices} slices a slab; "
    text += f"{needed:.2f} GB would do" if needed < float("inf") else "the GPU has no more"
    fewer = bisect_right(range(1, slab_slices), budget, key=leanest)
    return text + (f", or --set slab_slices={fewer}" if fewer else ", or a smaller model.size or model.image_size")


class Step(nn.Module):
    """A training step up to its gradients, as a module, so that other weights can stand in for its own."""

    def __init__(self, network: SAM2For3dMed, loss: TotalLoss, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.num_classes = num_classes

    def forward(self, slabs: Slabs) -> None:
        """Leave the gradients of Eq. 6 in the weights. For weak views there is a teacher, as large as the network."""
        training_step(self.network, self.loss, [slabs], self.num_classes, teach=self._teach)["total"].backward()

    @torch.no_grad()
    def _teach(self, weak: Tensor) -> Tensor:
        prediction: Prediction = self.network(weak)
        return prediction.segmentation


def seen_bytes(step: Step, slabs: Slabs, *, bf16: bool) -> float:
    """The measured peak bytes of a step on the GPU of its weights; infinite if the GPU has less."""
    device = step.network.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            step(slabs.each(lambda part: part.to(device)))
        return torch.cuda.max_memory_reserved(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return float("inf")
    finally:
        step.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def counted_bytes(step: Step, slabs: Slabs) -> int:
    """The peak bytes of a step in 32 bit, without the work space within operations, from the shapes of slabs alone."""
    state = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    stand_ins = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in state.items()
    }
    with _no_device(), LiveBytes(stand_ins.values()) as live:
        for tensor in stand_ins.values():
            if tensor.requires_grad:  # there from the pass before
                tensor.grad = torch.empty_like(tensor)
        empty = slabs.each(lambda part: torch.empty_like(part, device="meta"))
        functional_call(step, stand_ins, (empty,))
    return live.peak + sum(tensor.nbytes for tensor in state.values())


@contextmanager
def _no_device() -> Iterator[None]:
    """On `meta` tensors, attention without its matrix of weights, as CPUs and GPUs compute it, and no autocast.

    In place of the functions, and not by a function mode: modes do not reach what checkpointing computes again.
    """
    attention, autocast = F.scaled_dot_product_attention, torch.autocast

    def fused(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, *args, attn_mask=attn_mask, **kwargs)[0]

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    F.scaled_dot_product_attention, torch.autocast = fused, no_autocast  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, torch.autocast = attention, autocast  # type: ignore[misc]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, for as long as they live; each once, however many views
    it has. What an operation needs only within itself is not counted.

    known: tensors that were there before, of which operations make views.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._count(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                self._count(storage, storage.nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = num_bytes
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
