"""Many volumes: find them, predict each, and let a broken one cost only itself."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.inference.auxiliary import boundary_file
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.volume.dicom import DicomSeries, choose_series
from sam2_3dmed.volume.dicom_files import holds_dicom
from sam2_3dmed.volume.files import ENDINGS, case_name, list_volumes, read_channels
from sam2_3dmed.volume.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """One volume to predict: its name, and its file, a file per channel, or the folder, zip or file of a DICOM series.

    series_uid: which series; none takes the only one that makes a volume.
    """

    name: str
    files: tuple[Path, ...]
    series_uid: str | None = None

    def series(self) -> DicomSeries | None:
        """The DICOM series, if it is one.

        Raises:
            VolumeError: as `choose_series`.
        """
        if self.files[0].name.endswith(ENDINGS) or not holds_dicom(self.files[0]):
            return None
        return choose_series(self.files[0], self.series_uid)

    def read(self) -> Volume:
        """The volume; several files become channels.

        Raises:
            VolumeError: a file is unusable, or the files lie on different grids.
        """
        series = self.series()
        return read_channels(self.files) if series is None else series.read()


@dataclass(frozen=True)
class Outcome:
    """What became of an input: its mask's file, or why there is none."""

    name: str
    output: Path | None
    error: str | None


def find_inputs(paths: Sequence[Path], num_channels: int, series_uid: str | None = None) -> list[Input]:
    """The volumes among files and folders, by name; NAME_0000, NAME_0001, ... are one if the model has as many
    channels. A folder without NIfTI files but with DICOM files is one volume.

    series_uid: of the DICOM series, for a single path.

    Raises:
        DataError: a path is missing, a folder has no volume, two volumes have one name, or a UID for several paths.
    """
    if series_uid is not None and len(paths) != 1:
        raise DataError(f"--series {series_uid}: a series can be chosen for one input, not for {len(paths)}")
    grouped: dict[str, list[Path]] = {}
    inputs: list[Input] = []
    for path in paths:
        files = _files(path)
        if files == [path] and path.is_dir():
            inputs.append(Input(path.resolve().name, (path,), series_uid))
            continue
        for file in files:
            grouped.setdefault(case_name(file, channel_suffix=True), []).append(file)
    for name, group in grouped.items():
        inputs += [replace(item, series_uid=series_uid) for item in _inputs(name, group, num_channels)]
    for name, count in Counter(item.name for item in inputs).items():
        if count > 1:
            shared = next(item for item in inputs if item.name == name)
            raise DataError(f"{shared.files[0]}: {count} inputs have the name {name!r}")
    return inputs


def _files(path: Path) -> list[Path]:
    """The NIfTI files of a folder; else the path itself, a file or a folder with DICOM files."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = list_volumes(path) if path.is_dir() else [path]
    if not found and not holds_dicom(path):
        raise DataError(f"{path}: no .nii or .nii.gz file in this folder, and no DICOM file below it")
    return found or [path]


def _inputs(name: str, group: Sequence[Path], num_channels: int) -> list[Input]:
    """The files that are called `name`, as the channels of one volume if they are just these, else each on its own."""
    files = sorted(group, key=lambda file: file.name)
    if [case_name(file) for file in files] == [f"{name}_{channel:04d}" for channel in range(num_channels)]:
        return [Input(name, tuple(files))]
    return [Input(case_name(file), (file,)) for file in files]


def predict_cohort(
    predictor: Predictor,
    inputs: Sequence[Input],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    auxiliary: Path | None = None,
    mask_format: MaskFormat | None = None,
) -> list[Outcome]:
    """Predict every input into `folder/NAME.nii.gz`; one that fails is noted, and the others go on.

    mask_format: another format than NIfTI, with its own ending.

    auxiliary: a folder for boundary maps and relative positions; none writes masks only.

    Raises:
        DataError: a folder cannot be made, or a mask or map would replace an input.
    """
    written = mask_format or MaskFormat()
    outputs = {(folder / f"{item.name}{written.ending}").resolve() for item in inputs}
    if auxiliary is not None:
        outputs |= {boundary_file(auxiliary, item.name).resolve() for item in inputs}
    for file in (file for item in inputs for file in item.files):
        if file.resolve() in outputs:
            raise DataError(f"{file}: a mask would replace this input; choose another folder for the masks")
    try:
        for made in filter(None, (folder, auxiliary)):
            made.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{made}: cannot be made: {error.strerror}") from None
    outcomes = []
    for done, item in enumerate(inputs, start=1):
        output = folder / f"{item.name}{written.ending}"
        try:
            _predict(predictor, item, output, auxiliary, written)
            outcomes.append(Outcome(item.name, output, None))
        except Exception as error:  # a volume too large for the memory, too, costs only itself
            logger.warning("%s failed; the reason follows at the end", item.name)
            outcomes.append(Outcome(item.name, None, _explain(error, item)))
        progress(done, len(inputs))
    return outcomes


def _predict(predictor: Predictor, item: Input, output: Path, auxiliary: Path | None, mask_format: MaskFormat) -> None:
    series = item.series()
    mask_format.require(series)
    volume = read_channels(item.files) if series is None else series.read()
    if auxiliary is None:
        mask_format.write(predictor(volume), output, series)
        return
    mask, extra = predictor.with_auxiliary(volume)
    extra.write(auxiliary, item.name)
    mask_format.write(mask, output, series)


def _explain(error: Exception, item: Input) -> str:
    """The error in a line that names the input, and its kind where it is none of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text if any(str(file) in text for file in item.files) else f"{item.files[0]}: {text}"
