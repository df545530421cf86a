"""Where bf16 pays, and what keeps float32 where the rest of a prediction computes in bf16."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def bf16_is_fast(device: torch.device | str) -> bool:
    """Whether a device has instructions for bf16; without them it takes twice the time of float32."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def use_bf16(precision: str, device: torch.device | str) -> bool:
    """Whether a recipe asks for autocast to bf16; with `auto`, whether bf16 is fast on the device."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


def in_float32(part: Callable[..., Result], *tensors: Tensor) -> Result:
    """What a part gives for some tensors; in a prediction in bf16, of float32 and in float32.

    For the parts that are a small share of the work and a large one of what bf16 changes in a mask: the encoder's
    patches, its sums from block to block, its pyramid, and the mask decoder. Training leaves them to autocast.
    """
    device = tensors[0].device.type
    # What is compiled is a prediction's; the compiler knows no inference mode.
    predicting = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    if not (predicting and torch.is_autocast_enabled(device)):
        return part(*tensors)
    with torch.autocast(device, enabled=False):
        return part(*(tensor.float() for tensor in tensors))
