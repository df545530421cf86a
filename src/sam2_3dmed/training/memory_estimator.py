"""The memory that a training step takes: counted on tensors without content, or measured on a GPU."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam2_3dmed.data.slabs import Slabs
from sam2_3dmed.inference.free_memory import is_out_of_memory
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.step import training_step


class Step(nn.Module):
    """A training step up to its gradients, as a module, so that other weights can stand in for its own.

    num_classes: K.
    """

    def __init__(self, network: SAM2For3dMed, loss: TotalLoss, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.num_classes = num_classes

    def forward(self, slabs: Slabs) -> None:
        """Leave the gradients of Eq. 6 in the weights."""
        training_step(self.network, self.loss, [slabs], self.num_classes).total.backward()


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


def counted_bytes(step: Step, slabs: Slabs, *, copies: int = 3, bf16: bool = False) -> int:
    """The peak bytes of a step, without the work space within operations; nothing is computed.

    slabs: only their shapes matter. copies: of each weight that trains, beside itself and its gradient: two for Adam,
    one for an average. bf16: with autocast as on a CPU, which takes several times as long to count.
    """
    device = "cpu" if bf16 else "meta"
    without_content: AbstractContextManager[Any] = FakeTensorMode(allow_non_fake_inputs=True) if bf16 else _no_device()
    state = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    static = sum(tensor.nbytes for tensor in state.values())
    static += copies * sum(tensor.nbytes for tensor in state.values() if tensor.requires_grad)
    with without_content, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        stand_ins = {
            name: torch.empty_like(tensor, device=device).requires_grad_(tensor.requires_grad)
            for name, tensor in state.items()
        }
        with LiveBytes(stand_ins.values()) as live:
            for tensor in stand_ins.values():
                if tensor.requires_grad:  # there from the pass before
                    tensor.grad = torch.empty_like(tensor)
            empty = Slabs(*(torch.empty_like(part, device=device) for part in slabs))
            functional_call(step, stand_ins, (empty,))
    return static + live.peak


def seen_bytes(step: Step, slabs: Slabs, *, copies: int = 3, bf16: bool = False) -> float:
    """The measured peak bytes of a step on the GPU of its weights; infinite if the GPU has less."""
    device = step.network.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            step(Slabs(*(part.to(device) for part in slabs)))
        peak = torch.cuda.max_memory_reserved(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return float("inf")
    finally:
        step.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return float(peak + copies * sum(p.nbytes for p in step.parameters() if p.requires_grad))
