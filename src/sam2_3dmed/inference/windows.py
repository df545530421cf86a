"""Overlapping windows through a stack of slices, in one or both directions, blended as they come (readings 5 and 6).

What is held is a few windows: features and logits of a slice are let go as soon as no later window needs them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.model.encoder import Features
from sam2_3dmed.model.network import SAM2For3dMed

Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True)
class Window:
    """One pass of the network: D slices from `start`, fed from the last to the first if `reverse`."""

    start: int
    length: int
    reverse: bool

    @property
    def order(self) -> list[int]:
        """The slices in the order in which the network sees them."""
        indices = list(range(self.start, self.start + self.length))
        return indices[::-1] if self.reverse else indices


def plan_windows(num_slices: int, window_slices: int, overlap: float, direction: Direction) -> list[Window]:
    """Windows that cover every slice, by ascending start; the last one is moved back to end with the last slice.

    overlap: the share of a window that the next one repeats, 0 to below 1. A stack shorter than a window is one
    shorter window.
    """
    length = min(window_slices, num_slices)
    stride = max(1, round(length * (1 - overlap)))
    starts = sorted({*range(0, num_slices - length + 1, stride), num_slices - length})
    reverses = {"forward": [False], "backward": [True], "both": [False, True]}[direction]
    return [Window(start, length, reverse) for start in starts for reverse in reverses]


def blend_weights(length: int) -> list[float]:
    """The weight of each slice of a window: falls linearly toward both ends and is never zero."""
    return [min(i + 1, length - i) / ((length + 1) / 2) for i in range(length)]


class SliceBlender:
    """Sums weighted logits slice by slice and gives a slice away once it is complete."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._weights: dict[int, float] = {}

    def add(self, index: int, logits: Tensor, weight: float) -> None:
        """logits: (K, h, w) of slice `index`."""
        weighted = logits.float() * weight
        self._sums[index] = self._sums[index] + weighted if index in self._sums else weighted
        self._weights[index] = self._weights.get(index, 0.0) + weight

    def take(self, index: int) -> Tensor:
        """The weighted mean (K, h, w) of a slice, which is forgotten."""
        return self._sums.pop(index) / self._weights.pop(index)


class FeatureWindow:
    """The encoder's features of the slices that windows still need; each slice is encoded once.

    slices: (N, C, H0, W0) in [0, 1], an array or memory map; chunk: slices encoded at once.
    """

    def __init__(self, network: SAM2For3dMed, slices: NDArray[np.floating], chunk: int = 8) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self._slices = slices
        self._chunk = chunk
        self._features: dict[int, Features] = {}
        self._next = 0

    def gather(self, windows: list[Window]) -> Features:
        """The features of some windows of equal length, (B, D, C, ., .) each level."""
        self._encode_until(max(w.start + w.length for w in windows))
        return Features(
            *(
                torch.stack([torch.stack([self._features[i][level] for i in w.order]) for w in windows])
                for level in range(len(Features._fields))
            )
        )

    def forget_before(self, index: int) -> None:
        """Let go of slices that no later window needs."""
        for i in [i for i in self._features if i < index]:
            del self._features[i]

    def _encode_until(self, end: int) -> None:
        for start in range(self._next, end, self._chunk):
            chunk = np.array(self._slices[start : min(end, start + self._chunk)], dtype=np.float32, order="C")
            encoded = self._network.encoder(torch.from_numpy(chunk).unsqueeze(0).to(self._device))
            for offset in range(len(chunk)):
                self._features[start + offset] = Features(*(level[0, offset] for level in encoded))
        self._next = max(self._next, end)


def window_logits(
    network: SAM2For3dMed,
    slices: NDArray[np.floating],
    *,
    window_slices: int,
    overlap: float,
    direction: Direction,
    batch_size: int,
    boundary: bool = False,
    on_positions: Callable[[Window, Tensor], None] = lambda window, positions: None,
) -> Iterator[Tensor]:
    """The blended logits of each slice, (K, H/4, W/4) float32, in the order of the slices.

    slices: (N, C, H0, W0) in [0, 1]; boundary: the K maps of P_bd follow those of P_seg, (2K, H/4, W/4), for a network
    that has BD; on_positions: gets each window's P_pos, (D, D), from a network that has SRPP; the others: see
    `Predictor`.
    """
    windows = plan_windows(len(slices), window_slices, overlap, direction)
    features, blender = FeatureWindow(network, slices), SliceBlender()
    emitted = 0
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        prediction = network.decode(features.gather(batch))
        maps = prediction.segmentation
        if boundary and prediction.boundary is not None:
            maps = torch.cat([maps, prediction.boundary], dim=1)
        for row, window in enumerate(batch):
            if prediction.relative_position is not None:
                on_positions(window, prediction.relative_position[row])
            for place, (index, weight) in enumerate(zip(window.order, blend_weights(window.length), strict=True)):
                blender.add(index, maps[row, :, place], weight)
        complete = following[0].start if following else len(slices)
        for index in range(emitted, complete):
            yield blender.take(index)
        emitted = max(emitted, complete)
        features.forget_before(complete)
