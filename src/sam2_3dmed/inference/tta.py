"""Test-time augmentation: each slice passes the network in several views, whose logits are averaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.encoders.image_encoder import resize
from sam2_3dmed.encoders.precision import bf16_is_fast
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.interface import require_not_cancelled
from sam2_3dmed.model.network import DecoderFeatures, DecoderState, SAM2For3dMed
from sam2_3dmed.model.prompts import Prompts
from sam2_3dmed.model.upsample import upsample

PIXELS_AT_ONCE = (2**17, 2**22)
"""Pixels of the slices that are encoded together: on a CPU, elsewhere."""
_SHIFT = 2
"""In pixels; half the distance between two logits."""


class _View(NamedTuple):
    """One view of a slice: shifted by `_SHIFT` pixels or not at all, then mirrored along W or not."""

    down: int
    """1: the view begins further down; -1: further up; 0: no shift."""
    right: int
    mirrored: bool


def _views(flips: bool, shifts: bool) -> tuple[_View, ...]:
    if shifts:
        corners = ((-1, -1), (1, 1), (-1, 1), (1, -1))
        return tuple(_View(down, right, flips and down != right) for down, right in corners)
    return tuple(_View(0, 0, mirrored) for mirrored in ((False, True) if flips else (False,)))


class SliceStack(Protocol):
    """Slices (N, C, H0, W0) in [0, 1] of any dtype: an array, a memory map, or slices that are made on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice, /) -> NDArray[Any]: ...


class Forward:
    """A network over the slices of one stack. The features of a slice have one row for each view.

    Args:
        slices: (N, C, H0, W0) in [0, 1].
        config: with flips, each slice passes plain and mirrored. With shifts, it passes four times, shifted by half a
            logit towards each corner, and the logits are averaged at stride 2; with both, two of the four are mirrored.
        boundary: the K maps of P_bd follow the K maps of P_seg, if the network has BD.
        prompts: of all slices, for a network that takes them.
        cancel: ends the work before the next slices are encoded.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        slices: SliceStack,
        config: InferenceConfig,
        *,
        boundary: bool = False,
        prompts: Prompts | None = None,
        cancel: Event | None = None,
    ) -> None:
        self.network = network
        self.slices = slices
        self.config = config
        self.device = network.device
        self._bf16 = config.precision == "bf16" or (config.precision == "auto" and bf16_is_fast(self.device))
        self._views = _views(config.flips, config.shifts)
        self._boundary = boundary
        self._prompts = prompts
        self._cancel = cancel

    @property
    def chunk(self) -> int:
        """The number of slices to encode at once. More than one pays only for small slices."""
        pixels = self.network.encoder.image_size**2 * len(self._views)
        return max(1, PIXELS_AT_ONCE[self.device.type != "cpu"] // pixels)

    def encode(self, start: int, stop: int) -> list[DecoderFeatures]:
        """The features of some slices; each level is (rows, C, ., .)."""
        require_not_cancelled(self._cancel)
        chunk = np.array(self.slices[start:stop], dtype=np.float32, order="C")
        slices = self._seen(torch.from_numpy(chunk).to(self.device))
        with self._autocast():
            features = self.network.project(self.network.encoder(slices))
        if self._prompts is not None:
            prompts = self._prompts.each(lambda tensor: tensor[start:stop].to(self.device))
            features = features._replace(prompts=self._prompts_seen(prompts))
        # These are views, which keep the whole chunk alive. Copies would cost more than they free.
        return [features.at(i) for i in range(stop - start)]

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
        maps = self._maps(prediction.segmentation, prediction.boundary)
        return self._mean(maps.view(count, rows, *maps.shape[1:]), dim=1), positions

    def slice_context(self, slices: Sequence[DecoderFeatures]) -> tuple[list[Tensor], Tensor | None]:
        """The SRPP context of each slice among the others, and P_pos (D, D) or None."""
        with self._autocast():
            context, positions = self.network.slice_context(torch.stack([features.z for features in slices], dim=1))
        return list(context.unbind(1)), None if positions is None else positions.mean(dim=0)

    def start(self) -> DecoderState:
        """Empty memory banks for one pass through all slices."""
        return self.network.start(len(self.slices))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> Tensor:
        """The logits of the next slice, (K or 2K, h, w) float32."""
        with self._autocast():
            logits, boundary = self.network.step(state, features, context)
        return self._mean(self._maps(logits, boundary), dim=0)

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
        """The prompts of (n,) slices as each view shows them: (rows, n)."""
        step = _SHIFT / self.network.encoder.image_size
        rows = []
        for view in self._views:
            seen = prompts.moved(down=-step * view.down, right=-step * view.right)
            rows.append(seen.mirrored() if view.mirrored else seen)
        return Prompts(*(torch.stack(tensors) for tensors in zip(*rows, strict=True)))

    def _maps(self, logits: Tensor, boundary: Tensor | None) -> Tensor:
        if self._boundary and boundary is not None:
            logits = torch.cat([logits, boundary], dim=1)
        return logits.float()

    def _mean(self, maps: Tensor, dim: int) -> Tensor:
        """The mean over the views along `dim`, after each view is mirrored and shifted back."""
        total: Tensor | None = None
        # One view at a time: shifts make each four times as large.
        for view, row in zip(self._views, maps.unbind(dim), strict=True):
            turned = _mirrored_if(view, row)
            back = _shifted_back(view, turned) if self.config.shifts else turned
            total = back if total is None else total + back
        assert total is not None
        return total / len(self._views)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        # Only around the network: a generator that holds autocast would leave it on for its reader.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            yield


def _mirrored_if(view: _View, planes: Tensor) -> Tensor:
    return planes.flip(-1) if view.mirrored else planes


def _shifted_back(view: _View, logits: Tensor) -> Tensor:
    """(..., h, w) at stride 4 -> (..., 2h, 2w) at stride 2, where the shift is one place; edges are repeated."""
    height, width = 2 * logits.shape[-2], 2 * logits.shape[-1]
    fine = upsample(logits, (height, width))
    rows = torch.arange(height, device=fine.device).sub(view.down).clamp(0, height - 1)
    columns = torch.arange(width, device=fine.device).sub(view.right).clamp(0, width - 1)
    return fine.index_select(-2, rows).index_select(-1, columns)


def compile_network(network: SAM2For3dMed) -> None:
    """Compile the parts that have fixed shapes, once in the life of the network. This pays for many volumes only.

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
