"""Devices that are fast in bf16, and the parts of a network that stay in float32 all the same."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


def bf16_is_fast(device: torch.device | str) -> bool:
    """Whether a device computes faster in bf16 than in float32.

    A CPU needs AMX. On an Intel Xeon with AMX switched off, whose other instructions for bf16 remain (avx512_bf16),
    linear layers and training steps take 1.5 times as long as in float32.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def use_bf16(precision: str, device: torch.device | str) -> bool:
    """Whether a recipe asks for autocast to bf16; with `auto`, whether bf16 is fast on the device."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


def in_float32(part: Callable[..., Result], *tensors: Tensor) -> Result:
    """Call a part of the network. In a prediction in bf16, its input and its arithmetic are float32.

    It is for parts that are a small share of the work and cause much of the change that bf16 makes to a mask: the
    encoder's patches, its sums from block to block, its pyramid, and the mask decoder. Training does without.
    """
    device = tensors[0].device.type
    # Only predictions are compiled, and there the inference mode is not visible.
    predicting = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    if not (predicting and torch.is_autocast_enabled(device)):
        return part(*tensors)
    with torch.autocast(device, enabled=False):
        return part(*(tensor.float() for tensor in tensors))


def pad_short_stacks(network: nn.Module) -> None:
    """Pad stacks of fewer slices than a 3D convolution's kernel before they come to it, with the zeros that it adds.

    For training in bf16 on a CPU: torch 2.13 does not fill all of the weights' gradient if the convolution itself pads
    so short a stack (findings/torch_conv3d_bf16_weight_gradient.sh). The output is the same.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(_choose_padding)


def _choose_padding(convolution: nn.Conv3d, inputs: tuple[Tensor, ...]) -> None:
    # Conv3d pads beforehand in any mode but "zeros".
    short = inputs[0].shape[-3] < convolution.kernel_size[0]
    convolution.padding_mode = "constant" if short else "zeros"  # type: ignore[assignment]
