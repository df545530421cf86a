"""The network as inference runs it: slices in, averaged logits out, flips and autocast inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.boxes import mirrored
from sam2_3dmed.model.network import DecoderFeatures, DecoderState, SAM2For3dMed

PIXELS_AT_ONCE = (2**17, 2**22)
"""Of slices encoded together: on a CPU, elsewhere."""


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
    flips do, and the logits are averaged; boundary: the K maps of P_bd follow those of P_seg, if the network has BD;
    boxes: (N, K, 4), for a network that takes them.

    With flips, the features of a slice have two rows: its own and those of its mirror image.
    """

    def __init__(
        self,
        network: SAM2For3dMed,
        slices: SliceStack,
        *,
        bf16: bool = False,
        flips: bool = False,
        boundary: bool = False,
        boxes: Tensor | None = None,
    ) -> None:
        self.network = network
        self.slices = slices
        self.device = network.device
        self._bf16 = bf16
        self._flips = flips
        self._boundary = boundary
        self._boxes = boxes

    @property
    def chunk(self) -> int:
        """How many slices to encode at once: more pay only where each is small."""
        pixels = self.network.encoder.image_size**2 * (2 if self._flips else 1)
        return max(1, PIXELS_AT_ONCE[self.device.type != "cpu"] // pixels)

    def encode(self, start: int, stop: int) -> list[DecoderFeatures]:
        """The features of some slices, (1 or 2, C, ., .) each level."""
        chunk = np.array(self.slices[start:stop], dtype=np.float32, order="C")
        slices = torch.from_numpy(chunk).unsqueeze(0).to(self.device)
        if self._flips:
            slices = torch.cat([slices, slices.flip(-1)])
        with self._computing():
            features = self.network.project(self.network.encoder(slices))
        if self._boxes is not None:
            boxes = self._boxes[start:stop].unsqueeze(0).to(self.device)
            features = features._replace(boxes=torch.cat([boxes, mirrored(boxes)]) if self._flips else boxes)
        # Views: each keeps the whole chunk, which is small, alive; copies would cost more than what they free.
        return [features.at(i) for i in range(stop - start)]

    def decode(self, windows: Sequence[Sequence[DecoderFeatures]]) -> tuple[Tensor, Tensor | None]:
        """Windows of equal length as a batch: logits (B, K or 2K, D, h, w) float32, and P_pos (B, D, D) or None."""
        count, rows = len(windows), len(windows[0][0].z)
        flat = DecoderFeatures.cat([features for window in windows for features in window])
        batch = flat.each(lambda x: x.view(count, -1, rows, *x.shape[1:]).transpose(1, 2).flatten(0, 1))
        with self._computing():
            prediction = self.network.decode_projected(batch)
        maps = self._maps(prediction.segmentation, prediction.boundary)
        positions = prediction.relative_position
        if positions is not None:
            positions = positions.view(count, rows, *positions.shape[1:]).mean(dim=1)
        return self._mean(maps.view(count, rows, *maps.shape[1:]), dim=1), positions

    def look_around(self, slices: Sequence[DecoderFeatures]) -> tuple[list[Tensor], Tensor | None]:
        """Each slice's context in the light of the others, and P_pos (D, D) or None."""
        with self._computing():
            context, positions = self.network.look_around(torch.stack([features.z for features in slices], dim=1))
        return list(context.unbind(1)), None if positions is None else positions.mean(dim=0)

    def start(self) -> DecoderState:
        """Empty memories for one pass through all slices."""
        return self.network.start(len(self.slices))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> Tensor:
        """The next slice's logits, (K or 2K, h, w) float32."""
        with self._computing():
            logits, boundary = self.network.step(state, features, context)
        return self._mean(self._maps(logits, boundary), dim=0)

    def _maps(self, logits: Tensor, boundary: Tensor | None) -> Tensor:
        if self._boundary and boundary is not None:
            logits = torch.cat([logits, boundary], dim=1)
        return logits.float()

    def _mean(self, maps: Tensor, dim: int) -> Tensor:
        """Over the rows along `dim`: the slice's own, and its mirror image's, which is turned back."""
        own, *mirrored = maps.unbind(dim)
        return (own + mirrored[0].flip(-1)) / 2 if mirrored else own

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Only around the network: a generator that holds autocast would leave it on for whoever reads from it.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            yield


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
