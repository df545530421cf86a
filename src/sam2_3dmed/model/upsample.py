"""Bilinear upsampling as two matrix products.

The backward pass of `F.interpolate` adds up pixel by pixel. On a CPU it takes twenty times as long as the products. On
a GPU the order of its sums is not fixed, so that the last digits of a run differ from one time to the next.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def upsample(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) -> (..., H, W) float32, also under autocast: `F.interpolate`, bilinear, corners not aligned."""
    height, width = planes.shape[-2:]
    with torch.autocast(planes.device.type, enabled=False):
        return _weights(height, size[0], planes.device) @ (planes.float() @ _weights(width, size[1], planes.device).T)


@lru_cache(maxsize=32)
def _weights(size: int, target: int, device: torch.device) -> Tensor:
    """(target, size): the weight of each of `size` pixels in each of `target`."""
    # The cached tensor outlives the call, so it must be no inference tensor and no tensor without content.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        unit = torch.eye(size, device=device).unsqueeze(0)
        return F.interpolate(unit, target, mode="linear", align_corners=False).squeeze(0).T.contiguous()
