"""Many volumes, one after the other: while one is computed, the next is read and the last is written.

A volume that cannot be read, predicted or written fails alone.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.errors import Cancelled, DataError, UserError
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import Auxiliary, Segmenter, boundary_file, positions_file, require_not_cancelled
from sam2_3dmed.inference.logits_to_mask import probability_files
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.processes.atomic import make_folder
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The result of one input. Without an output folder, it holds the mask and the auxiliary outputs."""

    name: str
    output: Path | None = None
    """The file of the mask."""
    error: str | None = None
    """The reason, in one line that names the input, if it failed."""
    earlier: bool = False
    """An earlier run has finished this input."""
    mask: Volume | None = None
    auxiliary: Auxiliary | None = None


@dataclass(frozen=True)
class Job:
    """A model, and the files to write for each input. Worker processes get it pickled."""

    load: Callable[..., Segmenter]
    """Called as `load(device=NAME)`; None is the default device."""
    folder: Path | None = None
    """Without a folder, masks stay in memory."""
    mask_format: MaskFormat = field(default_factory=MaskFormat)
    auxiliary: bool = False
    """Also boundary maps and relative positions, in FOLDER/auxiliary."""
    probabilities: bool = False
    """Also the probabilities of each class, in FOLDER/probabilities."""
    manifest: Manifest | None = None

    def mask_file(self, item: Input) -> Path | None:
        return self.folder and self.folder / f"{item.name}{self.mask_format.ending}"

    @property
    def auxiliary_folder(self) -> Path | None:
        return self.folder / "auxiliary" if self.folder and self.auxiliary else None

    def probability_prefix(self, item: Input) -> Path | None:
        return self.folder / "probabilities" / item.name if self.folder and self.probabilities else None

    def files(self, item: Input) -> list[Path]:
        """Every file that may be written for an input."""
        files = [self.mask_file(item)]
        if self.auxiliary_folder is not None:
            files += [boundary_file(self.auxiliary_folder, item.name), positions_file(self.auxiliary_folder, item.name)]
        if (prefix := self.probability_prefix(item)) is not None:
            files += probability_files(prefix, self.mask_format.labels).values()
        return [file for file in files if file is not None]

    def make_folders(self, inputs: Sequence[Input]) -> None:
        """Make the folders.

        Raises:
            DataError: one cannot be made, an output would replace an input, or two inputs have the same output.
        """
        outputs = [file for item in inputs for file in self.files(item)]
        if twice := [file for file, count in Counter(outputs).items() if count > 1]:
            makers = " and ".join(item.source for item in inputs if twice[0] in self.files(item))
            raise DataError(f"{twice[0]}: {makers} would both be written to this file; rename one of them")
        places = {file.resolve() for file in outputs}
        for file in (file for item in inputs for file in item.sources):
            if file.resolve() in places:
                raise DataError(f"{file}: a mask would replace this input; choose another folder for the masks")
        for folder in filter(None, {self.folder, *(file.parent for file in outputs)}):
            make_folder(folder)


Report = Callable[[int, Outcome], None]
"""Called with the number and the outcome of each input, from any thread."""
OnSliceOf = Callable[[str, int, int], None]
"""Called with the name of the input, the number of finished slices and of all slices."""


Runner = Callable[[Job, Sequence[Input], Report], None]
"""Predicts inputs in other processes and reports each of them once; see `workers`."""


def predict_batch(
    job: Job,
    inputs: Sequence[Input],
    runner: Runner | None = None,
    *,
    device: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_slice: OnSliceOf | None = None,
    cancel: Event | None = None,
) -> list[Outcome]:
    """Predict the inputs that are not finished yet, in this process or by a runner.

    `device`, `on_slice` and `cancel` are for this process. `progress` is called with the number of inputs that are done
    and of all inputs.

    Raises:
        Cancelled: `cancel` was set. UserError: the model cannot be loaded, a folder cannot be made, or an output would
            replace an input.
    """
    outcomes = {}
    job.make_folders(inputs)
    if job.manifest is not None:
        if overwrite:
            job.manifest.forget(inputs)
        for index, (item, finished) in enumerate(zip(inputs, job.manifest.finished(inputs), strict=True)):
            if finished:
                outcomes[index] = Outcome(item.name, job.mask_file(item), earlier=True)
    if outcomes:
        logger.info("%d of %d are finished and whole already", len(outcomes), len(inputs))
        progress(len(outcomes), len(inputs))
    missing = [index for index in range(len(inputs)) if index not in outcomes]
    todo = [inputs[index] for index in missing]

    def report(number: int, outcome: Outcome) -> None:
        outcomes[missing[number]] = outcome
        progress(len(outcomes), len(inputs))

    if todo and runner is not None:
        runner(job, todo, report)
    elif todo:
        predict_each(job.load(device=device), enumerate(todo), job, report, on_slice=on_slice, cancel=cancel)
    return [outcomes[index] for index in range(len(inputs))]


def predict_each(
    segmenter: Segmenter,
    inputs: Iterable[tuple[int, Input]],
    job: Job,
    report: Report,
    *,
    on_slice: OnSliceOf | None = None,
    cancel: Event | None = None,
) -> None:
    """Predict numbered inputs as they come, with the job's model, and report them from another thread.

    Memory holds at most three volumes: one that is read, one that is computed, and one that is written.
    """
    cases = _read(inputs, job)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        upcoming = reader.submit(next, cases, None)
        written: Future[None] | None = None
        while (case := upcoming.result()) is not None:
            require_not_cancelled(cancel)
            upcoming = reader.submit(next, cases, None)
            case.compute(segmenter, on_slice, cancel)
            if written is not None:
                written.result()
            written = writer.submit(case.finish, report)
        if written is not None:
            written.result()


def _read(inputs: Iterable[tuple[int, Input]], job: Job) -> Iterator["_Case"]:
    for index, item in inputs:
        case = _Case(job, index, item, Outcome(item.name))
        case.read()
        yield case


@dataclass
class _Case:
    """An input on its way. After a step that fails, the later steps do nothing."""

    job: Job
    index: int
    item: Input
    outcome: Outcome
    seconds: float = 0.0
    series: DicomSeries | None = None
    volume: Volume | None = None
    reference: Volume | None = None
    decisive: Mapping[str, Any] | None = None
    """What decides the mask, before the input was read; see `Manifest.note`."""

    @contextmanager
    def _step(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        except Cancelled:
            raise
        except Exception as error:  # for example, a volume that is too large for the memory
            logger.warning("%s failed; the reason follows at the end", self.item.name)
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            named = any(str(file) in text for file in self.item.sources)
            self.outcome = Outcome(self.item.name, error=text if named else f"{self.item.source}: {text}")
            self.volume = None
        self.seconds += perf_counter() - started

    def read(self) -> None:
        with self._step():
            if self.job.manifest is not None and self.item.files:
                self.decisive = self.job.manifest.decisive(self.item)
            self.series = self.item.series()
            self.job.mask_format.require(self.series)
            self.volume = self.item.read() if self.series is None else self.series.read()
            if self.item.reference is not None:
                self.reference = read_label(self.item.reference)

    def compute(self, segmenter: Segmenter, on_slice: OnSliceOf | None, cancel: Event | None) -> None:
        with self._step():
            if self.volume is not None:
                predict = segmenter.with_auxiliary if self.job.auxiliary else segmenter
                found = predict(
                    self.volume,
                    reference=self.reference,
                    probabilities=self.job.probability_prefix(self.item),
                    on_slice=on_slice and partial(on_slice, self.item.name),
                    cancel=cancel,
                )
                mask, auxiliary = found if isinstance(found, tuple) else (found, None)
                self.outcome = Outcome(self.item.name, mask=mask, auxiliary=auxiliary)
        self.volume = self.reference = None

    def finish(self, report: Report) -> None:
        """Write the files, note the input in the manifest, and report it."""
        job, started = self.job, perf_counter()
        path, mask, auxiliary = job.mask_file(self.item), self.outcome.mask, self.outcome.auxiliary
        with self._step():
            if path is not None and mask is not None:
                if auxiliary is not None and job.auxiliary_folder is not None:
                    auxiliary.write(job.auxiliary_folder, self.item.name)
                job.mask_format.write(mask, path, self.series)
                if job.manifest is not None and self.decisive is not None:
                    files = [file for file in job.files(self.item) if file.is_file()]
                    job.manifest.note(self.item, self.decisive, files, self.seconds + perf_counter() - started)
                self.outcome = Outcome(self.item.name, path)
        report(self.index, self.outcome)
