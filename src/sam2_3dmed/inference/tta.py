"""Test-time augmentation: each slice passes the network in several views, whose logits are averaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from threading import Event
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.encoders.image_encoder import resize
from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.interface import require_not_cancelled
from sam2_3dmed.model.mask_decoder import upsample
from sam2_3dmed.model.network import DecoderFeatures, DecoderState, SAM2For3dMed
from sam2_3dmed.model.prompts import Prompts, first_prompted, mirrored, moved
from sam2_3dmed.model.slice_mixing import Chunk
from sam2_3dmed.volume.preprocess import SliceStack

Item = TypeVar("Item")
PIXELS_AT_ONCE = (2**17, 2**22)
"""Pixels of the slices that are encoded together: on a CPU, elsewhere."""
_SHIFT = 2
"""In pixels; half the distance between two logits."""


class _View(NamedTuple):
    """One view of a slice: shifted by `_SHIFT` pixels or not at all (-1, 0, 1), then mirrored along W or not."""

    down: int
    right: int
    mirrored: bool


def _views(flips: bool, shifts: bool) -> tuple[_View, ...]:
    if shifts:
        corners = ((-1, -1), (1, 1), (-1, 1), (1, -1))
        return tuple(_View(down, right, flips and down != right) for down, right in corners)
    return tuple(_View(0, 0, mirrored) for mirrored in ((False, True) if flips else (False,)))


Slices = SliceStack | NDArray[Any]
"""(N, C, H0, W0) in [0, 1] of any dtype: an array, a memory map, or slices that are made on demand."""


@dataclass(eq=False)
class Forward:
    """A network over the slices of one stack. The features of a slice have one row for each view.

    With flips in the config, each slice passes plain and mirrored. With shifts, it passes four times, shifted by half a
    logit towards each corner, and the logits are averaged at stride 2; with both, two of the four are mirrored.
    """

    network: SAM2For3dMed
    slices: Slices
    config: InferenceConfig
    _: KW_ONLY
    boundary: bool = False
    """The K maps of P_bd follow the K maps of P_seg, if the network has BD."""
    prompts: Prompts | None = None
    """Of all slices, (N, ...), for a network that takes them."""
    cancel: Event | None = None

    def __post_init__(self) -> None:
        if self.config.direction == "both" and not self.network.has_memory:  # both would give the same
            self.config = self.config.model_copy(update={"direction": "forward"})
        self.device = self.network.device
        self._bf16 = use_bf16(self.config.precision, self.device)
        self._views = _views(self.config.flips, self.config.shifts)

    @property
    def first_prompted(self) -> int:
        """The slice with which a promptable network begins; 0 without prompts."""
        if not self.network.promptable or self.prompts is None:
            return 0
        return first_prompted(self.prompts.each(lambda tensor: tensor.unsqueeze(0)))

    @property
    def chunk(self) -> int:
        """The number of slices to encode at once. More than one pays only for small slices."""
        pixels = self.network.encoder.image_size**2 * len(self._views)
        return max(1, PIXELS_AT_ONCE[self.device.type != "cpu"] // pixels)

    def encode(self, start: int, stop: int) -> DecoderFeatures:
        """The features of some slices; each level is (rows, n, C, ., .)."""
        require_not_cancelled(self.cancel)
        chunk = np.array(self.slices[start:stop], dtype=np.float32, order="C")
        slices = self._seen(torch.from_numpy(chunk).to(self.device))
        with self._autocast():
            features = self.network.project(self.network.encoder(slices))
        if self.prompts is not None:
            prompts = self.prompts.each(lambda tensor: tensor[start:stop].to(self.device))
            features = features.with_prompts(self._prompts_seen(prompts))
        return features

    def decode(self, slabs: Sequence[Sequence[DecoderFeatures]]) -> tuple[Tensor, Tensor | None]:
        """Slabs of equal length as a batch: logits (B, K or 2K, D, h, w) float32, and P_pos (B, D, D) or None."""
        count, rows = len(slabs), len(slabs[0][0].z)
        flat = DecoderFeatures.cat([features for slab in slabs for features in slab])
        batch = flat.each(lambda x: x.view(count, -1, rows, *x.shape[1:]).transpose(1, 2).flatten(0, 1))
        with self._autocast():
            prediction = self.network.decode_slabs(batch)
        positions = prediction.relative_position
        if positions is not None:
            positions = positions.view(count, rows, *positions.shape[1:]).mean(dim=1)
        return self._mean(prediction.segmentation, prediction.boundary, rows), positions

    def mix(self, chunks: Iterable[DecoderFeatures], size: int) -> Iterator[list[DecoderFeatures]]:
        """The features of all slices of a pass after slice mixing, in lists of parts, `size` slices a list."""
        return self._in_float32(self.network.mixed_stream(chunks, size))

    def slice_context(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The SRPP context (rows, n, C, h, w) of each slice among the others, and P_pos (n, n) or None."""
        with self._autocast():
            context, positions = self.network.slice_context(z)
        return context, None if positions is None else positions.mean(dim=0)

    def start(self) -> DecoderState:
        """Empty memory banks for one pass through all slices."""
        return self.network.start(len(self.slices))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> Chunk:
        """The outputs of `SAM2For3dMed.step` for the next slice, as a chunk of one."""
        with self._autocast():
            return [tensor.unsqueeze(1) for tensor in self.network.step(state, features, context)]

    def decode_at_once(self, features: DecoderFeatures, context: Tensor) -> Chunk:
        """The same for several slices, of a network without memory."""
        with self._autocast():
            return self.network.decode_at_once(features, context)

    def logits(self, outputs: Iterable[Chunk]) -> Iterator[Tensor]:
        """The logits of each slice, (K or 2K, h, w) float32, from the outputs of `step` for all slices of a pass."""
        floats = ([tensor.float() for tensor in chunk] for chunk in outputs)
        for segmentation, boundary in self._in_float32(self.network.logits_stream(floats, boundary=self.boundary)):
            yield from self._mean(segmentation, boundary, len(segmentation))[0].unbind(1)

    def _in_float32(self, items: Iterator[Item]) -> Iterator[Item]:
        """Mixing is a small share of the work, and bf16 would change masks most in it."""
        while True:
            with torch.autocast(self.device.type, enabled=False):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _seen(self, slices: Tensor) -> Tensor:
        """All views of some slices: (n, C, H0, W0) -> (rows, n, C, ., .)."""
        if not self.config.shifts:
            rows = [slices for _ in self._views]
        else:
            size = self.network.encoder.image_size
            large = F.pad(resize(slices, size), [_SHIFT] * 4, mode="replicate")
            starts = [(_SHIFT * (1 + view.down), _SHIFT * (1 + view.right)) for view in self._views]
            rows = [large[..., top : top + size, left : left + size] for top, left in starts]
        return torch.stack([_mirrored_if(v, row) for v, row in zip(self._views, rows, strict=True)])

    def _prompts_seen(self, prompts: Prompts) -> Prompts:
        """The prompts (n, ...) of slices as each view shows them: (rows, n, ...)."""
        step = _SHIFT / self.network.encoder.image_size
        rows = []
        for view in self._views:
            seen = moved(prompts.points, down=-step * view.down, right=-step * view.right)
            rows.append(mirrored(seen) if view.mirrored else seen)
        return Prompts(torch.stack(rows), None if prompts.masks is None else self._seen(prompts.masks))

    def _mean(self, logits: Tensor, boundary: Tensor | None, rows: int) -> Tensor:
        """(B x rows, K, ...) -> (B, K or 2K, ...): the mean over the views, each mirrored and shifted back."""
        maps = logits if boundary is None or not self.boundary else torch.cat([logits, boundary], dim=1)
        of_views = maps.float().view(-1, rows, *maps.shape[1:]).unbind(1)
        # One view at a time: shifts make each four times as large.
        turned = map(_turned_back, self._views, of_views)
        return sum(turned, start=next(turned)) / len(self._views)

    def _autocast(self) -> torch.autocast:
        # Only around the network: a generator that holds autocast would leave it on for its reader.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)


def _mirrored_if(view: _View, planes: Tensor) -> Tensor:
    return planes.flip(-1) if view.mirrored else planes


def _turned_back(view: _View, logits: Tensor) -> Tensor:
    """Mirrored back; and shifted back by a place at stride 2, (..., h, w) -> (..., 2h, 2w). Edges are repeated."""
    logits = _mirrored_if(view, logits)
    if not view.down:
        return logits
    height, width = 2 * logits.shape[-2], 2 * logits.shape[-1]
    fine = upsample(logits, (height, width))
    rows = torch.arange(height, device=fine.device).sub(view.down).clamp(0, height - 1)
    columns = torch.arange(width, device=fine.device).sub(view.right).clamp(0, width - 1)
    return fine.index_select(-2, rows).index_select(-1, columns)


def compile_network(network: SAM2For3dMed) -> None:
    """Compile the parts that have fixed shapes, once in the life of the network. This pays for many volumes only."""
    if network.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("compile: torch.compile needs a C++ compiler here (g++, clang++, or the one that CXX names)")
    decoders = [network.segmentation, *([network.boundary.decoder] if network.boundary is not None else [])]
    parts: list[nn.Module] = [network.encoder.vision_encoder]
    for decoder in decoders:
        parts += [decoder.mask_decoder, *([decoder.memory_encoder] if decoder.has_memory else [])]
    for part in parts:
        if part._compiled_call_impl is None:
            part.compile()
