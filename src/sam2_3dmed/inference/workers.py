"""A job on one machine: in this process, or in one process a GPU or a share of the processors."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.batch import Outcome, predict_each
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.job import Job, Report
from sam2_3dmed.processes.map_cases import num_processors
from sam2_3dmed.processes.worker_pool import Died, share_out

# What takes seconds to import. The second is what building the network imports.
_PRELOAD = ("sam2_3dmed.inference.predictor", "transformers.models.sam2.modeling_sam2")


def assign_devices(device: str | None, workers: int | None) -> list[str | None]:
    """The device of each worker process.

    device: one, or several with commas between them, which the workers take in turn; none: a GPU if there is one.
    workers: none: one a device.

    Raises:
        ConfigError: fewer workers than devices.
    """
    devices: list[str | None] = [name.strip() or None for name in device.split(",")] if device else [None]
    if workers is not None and workers < len(devices):
        raise ConfigError(f"--workers {workers}: {len(devices)} devices need as many workers")
    return [devices[number % len(devices)] for number in range(workers or len(devices))]


def in_this_process(job: Job, inputs: Sequence[Input], report: Report, *, device: str | None = None) -> None:
    """Do a job here.

    Raises:
        UserError: the model cannot be loaded.
    """
    predict_each(job.load(device), enumerate(inputs), job.results, report)


def in_processes(job: Job, inputs: Sequence[Input], report: Report, *, devices: Sequence[str | None]) -> None:
    """Do a job in one process a device. A process that dies costs no case but the one that kills it twice.

    Raises:
        UserError: the model cannot be loaded.
    """
    threads = max(1, num_processors() // len(devices))
    for index, outcome in share_out(partial(_work, job, threads), inputs, devices, _PRELOAD):
        if isinstance(outcome, Died):
            item = inputs[index]
            outcome = Outcome(item.name, None, f"{item.files[0]}: {outcome.reason}")
        report(index, outcome)


def limit_threads(threads: int) -> None:
    """Compute with no more threads than this process's share of the processors."""
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


def _work(
    job: Job,
    threads: int,
    device: str | None,
    cases: Iterator[tuple[int, Input]],
    report: Callable[[int, Outcome], None],
) -> None:
    limit_threads(threads)
    predict_each(job.load(device), cases, job.results, report)
