"""Prompts drawn as maps: what a network from scratch learns to use in minutes, beside SAM2's tokens for them.

SAM2 learnt in days of training to find the place that a token names. A map is already in its place. Source of the idea:
interactive networks that take prompts as input channels, such as nnInteractive (Isensee et al. 2025). The convolutions
start at zero, so that a network with SAM2's weights starts as SAM2.
"""

import torch
from torch import Tensor, nn

from sam2_3dmed.model.prompts import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT, Prompts

NUM_MAPS = 4
"""The box, points inside, points outside, and the mask."""


class PromptMaps(nn.Module):
    """What the maps of a slice's prompts add to the decoder's features at each of its three strides.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(NUM_MAPS, channels // 8, kernel_size=3, padding=1)
        self.conv8 = nn.Conv2d(NUM_MAPS, channels // 4, kernel_size=2, stride=2)
        self.conv16 = nn.Conv2d(NUM_MAPS, channels, kernel_size=4, stride=4)

    def forward(self, prompts: Prompts, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts of one class -> (B, C, h, w), (B, C/4, 2h, 2w) and (B, C/8, 4h, 4w); height, width: h and w."""
        maps = draw_maps(prompts, 4 * height, 4 * width)
        return self.conv16(maps), self.conv8(maps), self.conv4(maps)


def draw_maps(prompts: Prompts, height: int, width: int) -> Tensor:
    """(B, 4, height, width) of points (B, 1, P, 3) and masks (B, 1, height, width): see `NUM_MAPS`.

    A box is 1 inside, a point a Gaussian with a standard deviation of one pixel of the map, a mask 1 inside and -1
    outside. A map without a prompt of its kind is 0.
    """
    points = prompts.points[:, 0]
    x, y, kind = points.float().unbind(-1)
    columns, rows = (torch.arange(size, device=points.device) + 0.5 for size in (width, height))
    box = _box(x, kind, width, columns)[:, None, :] * _box(y, kind, height, rows)[:, :, None]
    across = torch.exp(-0.5 * (columns - x[..., None] * width) ** 2)  # (B, P, width)
    down = torch.exp(-0.5 * (rows - y[..., None] * height) ** 2)
    inside, outside = (
        (down[..., :, None] * (across * (kind == which)[..., None])[..., None, :]).amax(1)
        for which in (POSITIVE, NEGATIVE)
    )
    mask = torch.zeros_like(box)
    if prompts.masks is not None:
        mask = (prompts.masks[:, 0].float() * 2 - 1).nan_to_num(0.0)
    return torch.stack([box, inside, outside, mask], dim=1)


def _box(places: Tensor, kind: Tensor, size: int, centres: Tensor) -> Tensor:
    """The share of each of `size` pixels that lies between the two corners along one axis: (B, P) -> (B, size)."""
    low, high = (
        torch.where(kind == corner, places * size, -1.0).amax(-1, keepdim=True) for corner in (TOP_LEFT, BOTTOM_RIGHT)
    )
    half = 0.125  # of a pixel of the slice, since corners lie at the centres of the outermost ones
    covered = torch.minimum(high + half, centres + 0.5) - torch.maximum(low - half, centres - 0.5)
    return covered.clamp(0, 1) * (high >= 0)
