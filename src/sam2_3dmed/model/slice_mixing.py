"""Slice mixing: residual 3D convolutions through which the slices of a stack learn from each other.

Beyond the paper, whose authors name 3D context as future work. SAM2's memory joins slices at stride 16, one after the
other. A mixer joins neighbours at every resolution of the decoder, all at once. Its last convolution starts at zero, so
that a network with SAM2's weights starts as SAM2.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

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
        width, groups = (channels, channels) if depthwise else (2 * channels, 1)
        self.norm = nn.GroupNorm(1, channels)
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1, groups=groups)
        self.conv2 = _Pointwise(width, channels, 1) if depthwise else nn.Conv3d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    @property
    def reach(self) -> int:
        """The number of neighbours to each side that a slice depends on."""
        return sum(conv.kernel_size[0] // 2 for conv in (self.conv1, self.conv2))

    def forward(self, stack: Tensor) -> Tensor:
        """(B, D, C, h, w) -> (B, D, C, h, w)."""
        hidden = F.gelu(self.conv1(self._normed(stack).permute(0, 4, 1, 2, 3)))
        return stack + self.conv2(hidden).transpose(1, 2)

    def stream(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """As `forward`, for a stack that comes in chunks. The output comes in chunks, too, `reach` slices later.

        Args:
            chunks: the first tensor of each is the features. The others pass unchanged, beside their slices.
        """
        normed = ([self._normed(x), x, *rest] for x, *rest in chunks)
        hidden = _along_slices(self.conv1, normed)
        mixed = _along_slices(self.conv2, ([F.gelu(x), *rest] for x, *rest in hidden))
        return ([x + change.permute(0, 1, 4, 2, 3), *rest] for change, x, *rest in mixed)

    def _normed(self, stack: Tensor) -> Tensor:
        """(B, D, C, h, w) -> (B, D, h, w, C): with channels last in memory, convolutions on a CPU are fastest."""
        planes = stack.permute(0, 1, 3, 4, 2).contiguous()
        # torch 2.13 crashes in the gradient of GroupNorm itself, if features with channels last need none.
        plane = [int(side) for side in planes.shape[2:]]  # numbers, also while ONNX traces
        normed = F.layer_norm(planes, plane, eps=self.norm.eps)
        return torch.addcmul(self.norm.bias, normed, self.norm.weight)


class _Pointwise(nn.Conv3d):
    """A convolution of each pixel alone, as the matrix product that it is: a fraction of the time in training."""

    def forward(self, stack: Tensor) -> Tensor:
        pixels = stack.permute(0, 2, 3, 4, 1)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def in_slabs(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """The same slices in lists of chunks, `size` slices a list; the last has as many as there are. Nothing is copied.

    What is yielded is held nowhere else, so that who takes chunks from a list frees them.
    """
    waiting: list[Chunk] = []
    for chunk in chunks:
        waiting.append(chunk)
        del chunk
        while (count := sum(tensors[0].shape[1] for tensors in waiting)) >= size:
            yield _split(waiting, size)
    if waiting:
        yield _split(waiting, count)


def _split(waiting: list[Chunk], count: int) -> list[Chunk]:
    """Remove the first slices of some chunks. Returns: them, as chunks."""
    taken: list[Chunk] = []
    while count > 0:
        first = waiting.pop(0)
        if (rest := first[0].shape[1] - count) > 0:
            waiting.insert(0, [tensor[:, -rest:] for tensor in first])
            first = [tensor[:, :count] for tensor in first]
        taken.append(first)
        count = -rest
    return taken


def _take(waiting: list[Chunk], count: int) -> Chunk:
    """As `_split`, but one chunk. A chunk that is taken whole is not copied."""
    columns = zip(*_split(waiting, count), strict=True)
    return [parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in columns]


class SliceMixers(nn.Sequential):
    """Several slice mixers, one after the other."""

    def stream(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """See `SliceMixer.stream`."""
        for mixer in cast(Iterable[SliceMixer], self):
            chunks = mixer.stream(chunks)
        return chunks


def _along_slices(conv: nn.Conv3d, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """A convolution of the first tensor of a stream (B, n, h, w, C), with zeros before and after the whole stack."""
    reach = conv.kernel_size[0] // 2
    ahead: list[Tensor] = []  # slices (B, h, w, C) whose neighbours have not come, after `reach` slices that are done
    waiting: list[Chunk] = []
    for x, *rest in chunks:
        nothing = [torch.zeros_like(x[:, 0])] * reach
        ahead = [*(ahead or nothing), *x.unbind(dim=1)]
        waiting.append(rest)
        if (ready := len(ahead) - 2 * reach) > 0:
            yield [_convolved(conv, ahead), *_take(waiting, ready)]
            ahead = ahead[ready:]
    if waiting:
        yield [_convolved(conv, [*ahead, *nothing]), *_take(waiting, len(ahead) - reach)]


def _convolved(conv: nn.Conv3d, slices: Sequence[Tensor]) -> Tensor:
    """A convolution of n slices (B, h, w, C) that gives (B, n, h, w, C), less those that are neighbours only."""
    if conv.kernel_size[0] == 1:
        return F.linear(torch.stack(tuple(slices), dim=1), conv.weight.flatten(1), conv.bias)
    if conv.groups > 1:
        stack = torch.stack(tuple(slices), dim=1).permute(0, 4, 1, 2, 3)
        return F.conv3d(stack, conv.weight, conv.bias, padding=(0, 1, 1), groups=conv.groups).permute(0, 2, 3, 4, 1)
    # As a 2D convolution of three slices' channels, since 3D ones of few slices are slow on a CPU.
    threes = [torch.cat(list(slices[i : i + 3]), dim=-1) for i in range(len(slices) - 2)]
    planes = (threes[0] if len(threes) == 1 else torch.cat(threes)).permute(0, 3, 1, 2)
    convolved = F.conv2d(planes, conv.weight.transpose(1, 2).flatten(1, 2), conv.bias, padding=1)
    return convolved.permute(0, 2, 3, 1).unflatten(0, (len(threes), -1)).transpose(0, 1)
