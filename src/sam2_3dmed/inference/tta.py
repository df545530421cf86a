"""The network as inference runs it: slices in, averaged logits out, views of each slice and autocast inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import resize
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.network import DecoderFeatures, DecoderState, SAM2For3dMed
from sam2_3dmed.model.prompts import mirrored, moved
from sam2_3dmed.model.upsample import upsample

PIXELS_AT_ONCE = (2**17, 2**22)
"""Of slices encoded together: on a CPU, elsewhere."""
_SHIFT = 2
"""Pixels: half a logit."""


class _View(NamedTuple):
    """How a slice passes: what is seen begins `_SHIFT` pixels further down (1) or up (-1), and right or left, or
    where the slice does (0); then it is mirrored along W, or not."""

    down: int
    right: int
    mirrored: bool


def _views(flips: bool, shifts: bool) -> tuple[_View, ...]:
    if shifts:
        corners = ((-1, -1), (1, 1), (-1, 1), (1, -1))
        return tuple(_View(down, right, flips and down != right) for down, right in corners)
    return tuple(_View(0, 0, mirrored) for mirrored in ((False, True) if flips else (False,)))


class SliceStack(Protocol):
    """What the network sees, (N, C, H0, W0) in [0, 1], of any dtype: an array, a memory map, or slices on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H0, W0)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, which: slice, /) -> NDArray[Any]:
        """Some of the slices."""


class Forward:
    """A network over the slices of one stack.

    slices: (N, C, H0, W0) in [0, 1]; bf16: autocast; flips: each slice also passes mirrored along W, as training's
    flips do, and the logits are averaged; shifts: each slice passes four times, moved by half a logit towards each
    corner, with flips two of these mirrored, and the logits are averaged at stride 2; boundary: the K maps of P_bd
    follow those of P_seg, if the network has BD; boxes: (N, K, 4), for a network that takes them.

    The features of a slice have a row for each way it passes.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        slices: SliceStack,
        *,
        bf16: bool = False,
        flips: bool = False,
        shifts: bool = False,
        boundary: bool = False,
        boxes: Tensor | None = None,
    ) -> None:
        self.network = network
        self.slices = slices
        self.device = network.device
        self._bf16 = bf16
        self._shifts = shifts
        self._views = _views(flips, shifts)
        self._boundary = boundary
        self._boxes = boxes

    @property
    def chunk(self) -> int:
        """How many slices to encode at once: more pay only where each is small."""
        pixels = self.network.encoder.image_size**2 * len(self._views)
        return max(1, PIXELS_AT_ONCE[self.device.type != "cpu"] // pixels)

    def encode(self, start: int, stop: int) -> list[DecoderFeatures]:
        """The features of some slices, (rows, C, ., .) each level."""
        chunk = np.array(self.slices[start:stop], dtype=np.float32, order="C")
        slices = self._seen(torch.from_numpy(chunk).to(self.device))
        with self._computing():
            features = self.network.project(self.network.encoder(slices))
        if self._boxes is not None:
            features = features._replace(boxes=self._boxes_seen(self._boxes[start:stop].to(self.device)))
        # Views: each keeps the whole chunk, which is small, alive; copies would cost more than what they free.
        return [features.at(i) for i in range(stop - start)]

    def decode(self, slabs: Sequence[Sequence[DecoderFeatures]]) -> tuple[Tensor, Tensor | None]:
        """Slabs of equal length as a batch: logits (B, K or 2K, D, h, w) float32, and P_pos (B, D, D) or None."""
        count, rows = len(slabs), len(slabs[0][0].z)
        flat = DecoderFeatures.cat([features for slab in slabs for features in slab])
        batch = flat.each(lambda x: x.view(count, -1, rows, *x.shape[1:]).transpose(1, 2).flatten(0, 1))
        with self._computing():
            prediction = self.network.decode_projected(batch)
        maps = self._maps(prediction.segmentation, prediction.boundary)
        positions = prediction.relative_position
        if positions is not None:
            positions = positions.view(count, rows, *positions.shape[1:]).mean(dim=1)
        return self._mean(maps.view(count, rows, *maps.shape[1:]), dim=1), positions

    def slice_context(self, slices: Sequence[DecoderFeatures]) -> tuple[list[Tensor], Tensor | None]:
        """Each slice's context in the light of the others, and P_pos (D, D) or None."""
        with self._computing():
            context, positions = self.network.slice_context(torch.stack([features.z for features in slices], dim=1))
        return list(context.unbind(1)), None if positions is None else positions.mean(dim=0)

    def start(self) -> DecoderState:
        """Empty memories for one pass through all slices."""
        return self.network.start(len(self.slices))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> Tensor:
        """The next slice's logits, (K or 2K, h, w) float32."""
        with self._computing():
            logits, boundary = self.network.step(state, features, context)
        return self._mean(self._maps(logits, boundary), dim=0)

    def _seen(self, slices: Tensor) -> Tensor:
        """(n, C, H0, W0) -> (rows, n, C, ., .), as each view has them."""
        if not self._shifts:
            rows = [slices for _ in self._views]
        else:
            size = self.network.encoder.image_size
            large = F.pad(resize(slices, size), [_SHIFT] * 4, mode="replicate")
            starts = [(_SHIFT * (1 + view.down), _SHIFT * (1 + view.right)) for view in self._views]
            rows = [large[..., top : top + size, left : left + size] for top, left in starts]
        return torch.stack([_mirrored_if(v, row) for v, row in zip(self._views, rows, strict=True)])

    def _boxes_seen(self, boxes: Tensor) -> Tensor:
        """(n, K, 4) -> (rows, n, K, 4)."""
        step = _SHIFT / self.network.encoder.image_size
        rows = []
        for view in self._views:
            seen = moved(boxes, down=-step * view.down, right=-step * view.right)
            rows.append(mirrored(seen) if view.mirrored else seen)
        return torch.stack(rows)

    def _maps(self, logits: Tensor, boundary: Tensor | None) -> Tensor:
        if self._boundary and boundary is not None:
            logits = torch.cat([logits, boundary], dim=1)
        return logits.float()

    def _mean(self, maps: Tensor, dim: int) -> Tensor:
        """Over the rows along `dim`, each of which is turned and moved back."""
        first, *others = zip(self._views, maps.unbind(dim), strict=True)
        total = self._put_back(*first)
        for view, row in others:  # one at a time: four times as large as what comes in
            total = total + self._put_back(view, row)
        return total / len(self._views)

    def _put_back(self, view: _View, logits: Tensor) -> Tensor:
        turned = _mirrored_if(view, logits)
        return _moved_back(view, turned) if self._shifts else turned

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Only around the network: a generator that holds autocast would leave it on for whoever reads from it.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            yield


def _mirrored_if(view: _View, planes: Tensor) -> Tensor:
    return planes.flip(-1) if view.mirrored else planes


def _moved_back(view: _View, logits: Tensor) -> Tensor:
    """(..., h, w) at stride 4 -> (..., 2h, 2w) at stride 2, where half a logit is a whole one; edges are repeated."""
    height, width = 2 * logits.shape[-2], 2 * logits.shape[-1]
    fine = upsample(logits, (height, width))
    rows = torch.arange(height, device=fine.device).sub(view.down).clamp(0, height - 1)
    columns = torch.arange(width, device=fine.device).sub(view.right).clamp(0, width - 1)
    return fine.index_select(-2, rows).index_select(-1, columns)


def compile_network(network: SAM2For3dMed) -> None:
    """Have the parts of fixed shapes compiled, once for as long as the network lives; pays for cohorts, not for a case.

    Raises:
        ConfigError: there is no compiler.
    """
    if network.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("compile: torch.compile needs a C++ compiler here (g++, clang++, or the one that CXX names)")
    decoders = [network.segmentation, *([network.boundary.decoder] if network.boundary is not None else [])]
    parts: list[nn.Module] = [network.encoder.vision_encoder]
    for decoder in decoders:
        parts += [decoder.mask_decoder, decoder.memory_encoder]
    for part in parts:
        if part._compiled_call_impl is None:
            part.compile()
