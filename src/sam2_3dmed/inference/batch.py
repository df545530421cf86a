"""Many volumes, one after the other: while one is computed the next is read and the last written; a broken one costs
only itself."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.inference.auxiliary import Auxiliary, boundary_file, positions_file
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.inference.probabilities import probability_files
from sam2_3dmed.volume.files import read_channels
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of an input: its mask's file, or why there is none. earlier: it was finished before this run."""

    name: str
    output: Path | None
    error: str | None
    earlier: bool = False


@dataclass(frozen=True)
class Results:
    """Where results go and as what.

    auxiliary, probabilities: folders for boundary maps and relative positions, and for the classes' probabilities; none
    writes masks only. manifest: where each finished case is noted; none keeps no record.
    """

    folder: Path
    mask_format: MaskFormat = field(default_factory=MaskFormat)
    auxiliary: Path | None = None
    manifest: Manifest | None = None
    probabilities: Path | None = None

    def mask_file(self, item: Input) -> Path:
        """Where an input's mask goes."""
        return self.folder / f"{item.name}{self.mask_format.ending}"

    def files(self, item: Input) -> list[Path]:
        """All that was written for an input."""
        files = [self.mask_file(item)]
        if self.auxiliary is not None:
            files += [boundary_file(self.auxiliary, item.name), positions_file(self.auxiliary, item.name)]
        files += self._probability_files(item)
        return [file for file in files if file.is_file()]

    def make_room(self, inputs: Sequence[Input]) -> None:
        """Make the folders.

        Raises:
            DataError: one cannot be made, or a mask or map would replace an input.
        """
        outputs = {self.mask_file(item).resolve() for item in inputs}
        if self.auxiliary is not None:
            outputs |= {boundary_file(self.auxiliary, item.name).resolve() for item in inputs}
        outputs |= {file.resolve() for item in inputs for file in self._probability_files(item)}
        for file in (file for item in inputs for file in item.sources):
            if file.resolve() in outputs:
                raise DataError(f"{file}: a mask would replace this input; choose another folder for the masks")
        try:
            for made in filter(None, (self.folder, self.auxiliary, self.probabilities)):
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{made}: cannot be made: {error.strerror}") from None

    def _probability_files(self, item: Input) -> list[Path]:
        prefix = self.probability_prefix(item)
        return [] if prefix is None else list(probability_files(prefix, self.mask_format.labels).values())

    def probability_prefix(self, item: Input) -> Path | None:
        """What the names of an input's probabilities begin with; none if they are not wanted."""
        return None if self.probabilities is None else self.probabilities / item.name


def predict_cohort(
    predictor: Segmenter,
    inputs: Sequence[Input],
    results: Results,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Predict every input in this process; one that fails is noted, and the others go on.

    Raises:
        DataError: a folder cannot be made, or a mask or map would replace an input.
    """
    results.make_room(inputs)
    outcomes: dict[int, Outcome] = {}

    def report(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        progress(len(outcomes), len(inputs))

    predict_each(predictor, enumerate(inputs), results, report)
    return [outcomes[index] for index in range(len(inputs))]


def predict_each(
    predictor: Segmenter,
    inputs: Iterable[tuple[int, Input]],
    results: Results,
    report: Callable[[int, Outcome], None],
) -> None:
    """Predict numbered inputs as they come; the next is read and the last is written while one is computed.

    At most three volumes are in memory: one that waits as read, one that is computed, one that is written.
    report: called with each number and outcome, from another thread.
    """
    supply = iter(inputs)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        upcoming = reader.submit(_read_next, supply, results)
        written: Future[None] | None = None
        while (case := upcoming.result()) is not None:
            upcoming = reader.submit(_read_next, supply, results)
            case.compute(predictor, results)
            if written is not None:
                written.result()
            written = writer.submit(case.finish, results, report)
        if written is not None:
            written.result()


class _Case:
    """An input on its way; after a step that fails, the others do nothing."""

    def __init__(self, index: int, item: Input) -> None:
        self.index = index
        self.item = item
        self.error: str | None = None
        self._seconds = 0.0
        self._series: DicomSeries | None = None
        self._volume: Volume | None = None
        self._reference: Volume | None = None
        self._mask: Volume | None = None
        self._extra: Auxiliary | None = None

    def _attempt(self, step: Callable[[], None]) -> None:
        started = perf_counter()
        try:
            step()
        except Exception as error:  # a volume too large for the memory, too, costs only itself
            logger.warning("%s failed; the reason follows at the end", self.item.name)
            self.error = _explain(error, self.item)
            self._volume = self._reference = self._mask = self._extra = None
        self._seconds += perf_counter() - started

    def read(self, results: Results) -> None:
        def step() -> None:
            self._series = self.item.series()
            results.mask_format.require(self._series)
            self._volume = read_channels(self.item.files) if self._series is None else self._series.read()
            if self.item.reference is not None:
                self._reference = read_label(self.item.reference)

        self._attempt(step)

    def compute(self, predictor: Segmenter, results: Results) -> None:
        volume, reference = self._volume, self._reference
        self._volume = self._reference = None
        if volume is None:  # it could not be read
            return

        def step() -> None:
            prefix = results.probability_prefix(self.item)
            if results.auxiliary is None:
                self._mask = predictor(volume, prefix, reference=reference)
            else:
                self._mask, self._extra = predictor.with_auxiliary(volume, prefix, reference=reference)

        self._attempt(step)

    def finish(self, results: Results, report: Callable[[int, Outcome], None]) -> None:
        """Write, note in the manifest, and report."""
        mask, path = self._mask, results.mask_file(self.item)

        def step() -> None:
            if mask is None:
                return
            if self._extra is not None and results.auxiliary is not None:
                self._extra.write(results.auxiliary, self.item.name)
            results.mask_format.write(mask, path, self._series)
            if results.manifest is not None:
                results.manifest.note(self.item, results.files(self.item), self._seconds + perf_counter() - started)

        started = perf_counter()
        self._attempt(step)
        report(self.index, Outcome(self.item.name, None if self.error else path, self.error))


def _read_next(supply: Iterator[tuple[int, Input]], results: Results) -> _Case | None:
    numbered = next(supply, None)
    if numbered is None:
        return None
    case = _Case(*numbered)
    case.read(results)
    return case


def _explain(error: Exception, item: Input) -> str:
    """The error in a line that names the input, and its kind where it is none of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text if any(str(file) in text for file in item.sources) else f"{item.files[0]}: {text}"
