"""Files with the probabilities of each class, written slice by slice while the network computes."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.inference.logits_to_mask import as_bytes, resize
from sam2_3dmed.processes.atomic import make_folder
from sam2_3dmed.volume.slices import SlicingAxis, array_axes, writing_slices
from sam2_3dmed.volume.volume import Volume

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
