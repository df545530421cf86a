"""Slice mixing: residual 3D convolutions through which the slices of a stack learn from each other.

Beyond the paper, whose authors name 3D context as future work. SAM2's memory joins slices at stride 16, one after the
other. A mixer joins neighbours at every resolution of the decoder, all at once. Its last convolution starts at zero, so
that a network with SAM2's weights starts as SAM2.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Chunk = Sequence[Tensor]
"""Consecutive slices (B, n, ...) of a stack, several tensors of each. n may differ from chunk to chunk."""


class SliceMixer(nn.Module):
    """x + conv2(GELU(conv1(norm(x)))), with convolutions of 3 slices.

    The norm takes each slice alone. So a slice depends on `reach` neighbours to each side and on nothing else, and a
    stack can pass as a stream: see `stream`.

    Args:
        channels: of the features.
        depthwise: the first convolution is one of each channel alone, and the second one of each pixel alone.
    """

    def __init__(self, channels: int, *, depthwise: bool = False) -> None:
        super().__init__()
        width, kernel, groups = (channels, 1, channels) if depthwise else (2 * channels, 3, 1)
        self.norm = nn.GroupNorm(1, channels)
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1, groups=groups)
        self.conv2 = nn.Conv3d(width, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    @property
    def reach(self) -> int:
        """The number of neighbours to each side that a slice depends on."""
        return sum(conv.kernel_size[0] // 2 for conv in (self.conv1, self.conv2))

    def forward(self, stack: Tensor) -> Tensor:
        """(B, D, C, h, w) -> (B, D, C, h, w)."""
        hidden = F.gelu(self.conv1(self._normed(stack)))
        return stack + self.conv2(hidden).transpose(1, 2)

    def stream(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """As `forward`, for a stack that comes in chunks. The output comes in chunks, too, `reach` slices later.

        Args:
            chunks: the first tensor of each is the features. The others pass unchanged, beside their slices.
        """
        normed = ([self._normed(x).transpose(1, 2), x, *rest] for x, *rest in chunks)
        hidden = _along_slices(self.conv1, normed)
        mixed = _along_slices(self.conv2, ([F.gelu(x), *rest] for x, *rest in hidden))
        return ([x + change, *rest] for change, x, *rest in mixed)

    def _normed(self, stack: Tensor) -> Tensor:
        """(B, D, C, h, w) -> (B, C, D, h, w)."""
        # Contiguous: torch 2.13 crashes in the gradient of a norm of features with channels last that need no gradient.
        return self.norm(stack.flatten(0, 1).contiguous()).unflatten(0, stack.shape[:2]).transpose(1, 2)


class SliceMixers(nn.Sequential):
    """Several slice mixers, one after the other."""

    def stream(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """See `SliceMixer.stream`."""
        for mixer in self:
            chunks = mixer.stream(chunks)
        return chunks


def _along_slices(conv: nn.Conv3d, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """A convolution of the first tensor of a stream (B, n, C, h, w), with zeros before and after the whole stack."""
    reach = conv.kernel_size[0] // 2
    padding = (0, *conv.padding[1:])
    ahead: Tensor | None = None  # slices whose neighbours have not come, after `reach` slices that are done
    waiting: list[Tensor] = []

    def convolved(x: Tensor) -> Tensor:
        y = F.conv3d(x.transpose(1, 2), conv.weight, conv.bias, padding=padding, groups=conv.groups)
        return y.transpose(1, 2)

    for x, *rest in chunks:
        nothing = torch.zeros_like(x[:, :1]).expand(-1, reach, -1, -1, -1)
        ahead = torch.cat([nothing if ahead is None else ahead, x], dim=1)
        waiting = [torch.cat(pair, dim=1) for pair in zip(waiting, rest, strict=True)] if waiting else rest
        ready = ahead.shape[1] - 2 * reach
        if ready > 0:
            yield [convolved(ahead), *(tensor[:, :ready] for tensor in waiting)]
            ahead, waiting = ahead[:, ready:], [tensor[:, ready:] for tensor in waiting]
    if ahead is not None and waiting[0].shape[1]:
        yield [convolved(torch.cat([ahead, nothing], dim=1)), *waiting]
