"""Files with the probabilities of each class, written slice by slice while the network computes."""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.logits_to_mask import as_bytes, resize
from sam2_3dmed.volume.slice_writer import SliceWriter, writing_slices
from sam2_3dmed.volume.slices import SlicingAxis, array_axes
from sam2_3dmed.volume.volume import Volume

_AHEAD = 4  # slices that may wait for the thread that writes


class ProbabilityWriter:
    """Turns the logits of slices into probabilities, and writes them in a thread."""

    def __init__(self, writers: Sequence[SliceWriter], thread: ThreadPoolExecutor, size: tuple[int, int]) -> None:
        self._writers = writers
        self._thread = thread
        self._size = size
        self._pending: deque[Future[None]] = deque()

    def add(self, index: int, logits: Tensor) -> None:
        """Add the logits (K, h, w) of slice `index`.

        Raises: VolumeError if an earlier slice could not be written.
        """
        while len(self._pending) >= _AHEAD:
            self._pending.popleft().result()
        planes = [as_bytes(resize(one, *self._size)).cpu().numpy() for one in logits]
        self._pending.append(self._thread.submit(self._write, index, planes))

    def finish(self) -> None:
        """Wait for the thread.

        Raises: VolumeError if a slice could not be written.
        """
        while self._pending:
            self._pending.popleft().result()

    def _write(self, index: int, planes: Sequence[NDArray[np.uint8]]) -> None:
        for writer, plane in zip(self._writers, planes, strict=True):
            writer.write(index, plane)


@contextmanager
def writing_probabilities(
    prefix: Path, labels: Mapping[int, str], grid: Volume, axis: SlicingAxis
) -> Iterator[ProbabilityWriter]:
    """A writer into `probability_files`, which appear when all slices are written, or not at all.

    Probabilities are bytes with a scale of 1/255. They take a quarter of float32, are off by 0.2 percent at most, and
    every viewer reads them (NIfTI has no 16-bit floats).

    Raises:
        UserError: the files cannot be written.
    """
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{prefix.parent}: cannot be made: {error.strerror}") from None
    with ExitStack() as files, ThreadPoolExecutor(1, "probabilities") as thread:
        paths = probability_files(prefix, labels).values()
        writers = [files.enter_context(writing_slices(path, grid, axis, 1 / 255)) for path in paths]
        _, height, width = (grid.shape[i] for i in array_axes(grid, axis)[0])
        writer = ProbabilityWriter(writers, thread, (height, width))
        yield writer
        writer.finish()


def probability_files(prefix: Path, labels: Mapping[int, str]) -> dict[int, Path]:
    """PREFIX_CLASS.nii.gz for each label value. Characters that a file name cannot hold become _."""
    names = {value: re.sub(r"[^\w.+-]+", "_", name) for value, name in labels.items()}
    shared = {name for name in names.values() if [other.lower() for other in names.values()].count(name.lower()) > 1}
    return {
        value: prefix.with_name(f"{prefix.name}_{name}{f'_{value}' if name in shared else ''}.nii.gz")
        for value, name in names.items()
    }
