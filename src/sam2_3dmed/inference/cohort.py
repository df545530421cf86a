"""Many volumes: find them, predict each, and let a broken one cost only itself."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.volume.files import case_name, list_volumes, read_channels
from sam2_3dmed.volume.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """One volume to predict: its name, and its file or a file per channel."""

    name: str
    files: tuple[Path, ...]

    def read(self) -> Volume:
        """The volume; several files become channels.

        Raises:
            VolumeError: a file is unusable, or the files lie on different grids.
        """
        return read_channels(self.files)


@dataclass(frozen=True)
class Outcome:
    """What became of an input: its mask's file, or why there is none."""

    name: str
    output: Path | None
    error: str | None


def find_inputs(paths: Sequence[Path], num_channels: int) -> list[Input]:
    """The volumes among files and folders, by name; NAME_0000, NAME_0001, ... are one if the model has as many
    channels.

    Raises:
        DataError: a path is missing, a folder has no volume, or two volumes have one name.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = list_volumes(path)
            if not found:
                raise DataError(f"{path}: no .nii or .nii.gz file in this folder")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    grouped: dict[str, list[Path]] = {}
    for file in files:
        name = case_name(file, channel_suffix=True)
        grouped.setdefault(name, []).append(file)
    inputs = [item for name, group in grouped.items() for item in _inputs(name, group, num_channels)]
    for name, count in Counter(item.name for item in inputs).items():
        if count > 1:
            shared = next(item for item in inputs if item.name == name)
            raise DataError(f"{shared.files[0]}: {count} inputs have the name {name!r}")
    return inputs


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
) -> list[Outcome]:
    """Predict every input into `folder/NAME.nii.gz`; one that fails is noted, and the others go on.

    Raises:
        DataError: the folder cannot be made, or a mask would replace an input.
    """
    outputs = {(folder / f"{item.name}.nii.gz").resolve() for item in inputs}
    for file in (file for item in inputs for file in item.files):
        if file.resolve() in outputs:
            raise DataError(f"{file}: a mask would replace this input; choose another folder for the masks")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from None
    outcomes = []
    for done, item in enumerate(inputs, start=1):
        output = folder / f"{item.name}.nii.gz"
        try:
            predictor(item.read()).write(output)
            outcomes.append(Outcome(item.name, output, None))
        except Exception as error:  # a volume too large for the memory, too, costs only itself
            logger.warning("%s failed; the reason follows at the end", item.name)
            outcomes.append(Outcome(item.name, None, _explain(error, item)))
        progress(done, len(inputs))
    return outcomes


def _explain(error: Exception, item: Input) -> str:
    """The error in a line that names the input, and its kind where it is none of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text if any(str(file) in text for file in item.files) else f"{item.files[0]}: {text}"
