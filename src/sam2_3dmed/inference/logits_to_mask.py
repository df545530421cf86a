"""The classes and probabilities of a slice at native size, from its logits at stride 4 or 2 (reading 10).

Classes are resized one after the other, so that only one of them exists at native size at a time.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.processes.atomic import make_folder
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.slices import SlicingAxis, array_axes, writing_slices
from sam2_3dmed.volume.volume import Volume


def argmax_mask(logits: Tensor, height: int, width: int, values: Sequence[int] | None = None) -> Tensor:
    """The classes of a slice: in each pixel the class of the highest logit if that is above 0, else background.

    Logits are (K, h, w), and `values` the values of class 1..K in the result, which is (height, width) uint8, or int32
    if a value exceeds 255.
    """
    values = values or range(1, len(logits) + 1)
    dtype = torch.uint8 if max(values) < 256 else torch.int32
    classes = torch.zeros((height, width), dtype=dtype, device=logits.device)
    highest = torch.zeros((height, width), dtype=logits.dtype, device=logits.device)
    for k, small, large in _boxes(logits, height, width):
        part = highest[large]
        resized = resize(logits[k][small], *part.shape)
        wins = (resized > part).to(dtype)
        classes[large].bitwise_and_(wins - 1).bitwise_or_(wins * values[k])  # a tenth of the time of a masked fill
        torch.maximum(part, resized, out=part)
    return classes


def slice_mask(logits: Tensor, height: int, width: int, scheme: LabelScheme) -> Tensor:
    """The classes of a slice, (height, width), from logits (K, h, w); regions are painted one over the other."""
    if not scheme.regions:
        return argmax_mask(logits, height, width, tuple(scheme))
    values = tuple(scheme)
    dtype = torch.uint8 if max(values) < 256 else torch.int32
    classes = torch.zeros((height, width), dtype=dtype, device=logits.device)
    for k, small, large in _boxes(logits, height, width):
        part = classes[large]
        part.masked_fill_(resize(logits[k][small], *part.shape) > 0, values[k])
    return classes


def _boxes(logits: Tensor, height: int, width: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """The classes that are above 0 anywhere, each with the rows and columns to resize, before and after.

    Resizing takes means of neighbours. A class that is nowhere above 0 at stride 4 is nowhere above 0 at native size,
    and at most one pixel beyond the box of its positive pixels counts. Where the size grows by a power of two, the
    resized box is equal to the same part of the resized whole to the last bit; elsewhere the whole is resized.
    """
    positive = logits > 0
    rows, columns = (positive.any(dim=dim).cpu().numpy() for dim in (2, 1))
    growth = height / logits.shape[1], width / logits.shape[2]
    exact = all(factor.is_integer() and int(factor).bit_count() == 1 for factor in growth)
    for k in np.flatnonzero(rows.any(axis=1)).tolist():
        y, large_y = _part(rows[k], height, exact)
        x, large_x = _part(columns[k], width, exact)
        yield k, (y, x), (large_y, large_x)


def _part(positive: NDArray[np.bool_], size: int, exact: bool) -> tuple[slice, slice]:
    """The part of an axis to resize, before and after it grows to `size`."""
    if not exact:
        return slice(0, len(positive)), slice(0, size)
    places, growth = np.flatnonzero(positive), size // len(positive)
    start, stop = max(0, int(places[0]) - 1), min(len(positive), int(places[-1]) + 2)
    return slice(start, stop), slice(start * growth, stop * growth)


def boundary_map(logits: Tensor, height: int, width: int) -> Tensor:
    """The largest boundary probability of a class, 0 to 255: logits (K, h, w) -> (height, width) uint8."""
    highest = resize(logits[0], height, width)
    for k in range(1, len(logits)):
        torch.maximum(highest, resize(logits[k], height, width), out=highest)
    return as_bytes(highest)


def as_bytes(logits: Tensor) -> Tensor:
    """Probabilities as 0 to 255, uint8."""
    return (logits.sigmoid() * 255).round_().to(torch.uint8)


def resize(logits: Tensor, height: int, width: int) -> Tensor:
    """(h, w) -> (height, width), bilinear; a new tensor."""
    return F.interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]


_AHEAD = 4  # slices that may wait for the thread that writes


@contextmanager
def writing_probabilities(
    prefix: Path, labels: Mapping[int, str], grid: Volume, axis: SlicingAxis
) -> Iterator[Callable[[int, Tensor], None]]:
    """A function that takes the index and the logits (K, h, w) of each slice, and writes them in a thread.

    `probability_files` appear when all slices are written, or not at all. Probabilities are bytes with a scale of
    1/255. They take a quarter of float32, are off by 0.2 percent at most, and every viewer reads them (NIfTI has no
    16-bit floats). Raises UserError if they cannot be written; the function may raise it for an earlier slice.
    """
    make_folder(prefix.parent)
    _, height, width = (grid.shape[i] for i in array_axes(grid, axis)[0])
    pending: deque[Future[None]] = deque()
    with ExitStack() as files, ThreadPoolExecutor(1, "probabilities") as thread:
        paths = probability_files(prefix, labels).values()
        writers = [files.enter_context(writing_slices(path, grid, axis, 1 / 255)) for path in paths]

        def write(index: int, planes: Sequence[NDArray[np.uint8]]) -> None:
            for writer, plane in zip(writers, planes, strict=True):
                writer.write(index, plane)

        def add(index: int, logits: Tensor) -> None:
            if len(pending) == _AHEAD:
                pending.popleft().result()
            planes = [as_bytes(resize(one, height, width)).cpu().numpy() for one in logits]
            pending.append(thread.submit(write, index, planes))

        yield add
        for written in pending:
            written.result()


def probability_files(prefix: Path, labels: Mapping[int, str]) -> dict[int, Path]:
    """PREFIX_CLASS.nii.gz for each label value. Characters that a file name cannot hold become _."""
    names = {value: re.sub(r"[^\w.+-]+", "_", name) for value, name in labels.items()}
    shared = {name for name in names.values() if [other.lower() for other in names.values()].count(name.lower()) > 1}
    return {
        value: prefix.with_name(f"{prefix.name}_{name}{f'_{value}' if name in shared else ''}.nii.gz")
        for value, name in names.items()
    }
