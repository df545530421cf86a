"""The batches of a training run, and the share of each process in them and in validation.

The batch of a step does not depend on the number of processes and passes: it has `training.batch_size` slabs, drawn by
their numbers. The weights are therefore those of one process, but for the order of sums.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.data.slabs import SampleKey
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.training.distributed import DistributedContext


class Part(NamedTuple):
    """The slabs of an epoch that a process takes through the network in one pass."""

    start: int
    stop: int
    counted: int
    """The number of slabs that count: all, or 0 if there are fewer slabs than parts and one stands in."""
    weight: float
    """The factor of the mean loss of the part, before it is averaged over passes and processes."""


@dataclass(eq=False)
class Division(Sampler[list[SampleKey]]):
    """How the batch of each step is divided: over the processes of a run, and over passes one after the other.

    Iterating gives the keys of the share of this process, pass by pass.

    Raises: ConfigError if the batch is too small for so many processes and passes.
    """

    samples_per_epoch: int
    """Of all processes, as is the next."""
    batch_size: int
    grad_accum_steps: int = 1
    """Passes a step."""
    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < self.ranks or self.grad_accum_steps > -(-self.batch_size // self.ranks):
            raise ConfigError(
                f"training.batch_size={self.batch_size} is the batch of all processes in all passes of a step, too "
                f"small to be divided over {self.ranks} processes and "
                f"training.grad_accum_steps={self.grad_accum_steps} passes"
            )
        self.move_to(0)

    @property
    def steps(self) -> int:
        """Of the optimiser, in an epoch."""
        return -(-self.samples_per_epoch // self.batch_size)

    def __len__(self) -> int:
        """Passes through the network, in an epoch."""
        return self.steps * self.grad_accum_steps

    def part(self, number: int) -> Part:
        """The share of this process in a pass. number: of the pass in the epoch.

        The shares of a step differ by one slab at most. If there are fewer slabs than shares, in the last step of an
        epoch, a process without a slab computes the first one, which does not count: all processes must take part in
        adding up gradients.
        """
        step, turn = divmod(number, self.grad_accum_steps)
        first = step * self.batch_size
        count = min(self.batch_size, self.samples_per_epoch - first)
        parts = self.ranks * self.grad_accum_steps
        share = turn * self.ranks + self.rank
        start, stop = (first + count * end // parts for end in (share, share + 1))
        if start == stop:
            return Part(first, first + 1, 0, 0.0)
        return Part(start, stop, stop - start, parts * (stop - start) / count)

    def move_to(self, epoch: int, first: int = 0) -> None:
        """Begin the next iteration in an epoch, at the pass `first`."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self._epoch
        for number in range(self._first, len(self)):
            part = self.part(number)
            yield [SampleKey(epoch, slab) for slab in range(part.start, part.stop)]


def epoch_loader(
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    training: TrainingConfig,
    num_cases: int,
    distributed: DistributedContext,
) -> DataLoader[Any]:
    """An epoch of a data set whose keys are `SampleKey`s, in batches that `collate` makes."""
    division = Division(
        training.samples_per_epoch or num_cases,
        training.batch_size,
        training.grad_accum_steps,
        distributed.size,
        distributed.rank,
    )
    workers = training.workers
    if workers is None:
        workers = max(0, min(8, (os.cpu_count() or 1) // distributed.devices - 1))
    return DataLoader[Any](
        dataset,
        batch_sampler=division,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork of a process with threads can hang
        pin_memory=torch.cuda.is_available(),
    )


def shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """The numbers of the volumes that each process validates, in ascending order; about equally many slices each.

    sizes: slices of each volume. The first process has volume 0, which is the one that is shown. Where there are fewer
    volumes than processes, the others validate volume 0 too, since all must take part in what follows.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        min(dealt, key=lambda share: sum(sizes[other] for other in share)).append(number)
    dealt.sort(key=lambda share: 0 not in share)
    return [sorted(share) or [0] for share in dealt]
