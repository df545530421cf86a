"""The run folder: its files, and how a trained model is saved in it and loaded from it.

runs/NAME/
  config.yaml  model.safetensors     everything that `predict` needs; they can move to another machine
               *.onnx                by `export`, instead of model.safetensors
  split.json   curves.csv   log.txt   tensorboard/   checkpoints/   pictures/
               schedule.json         the epochs of `train --minutes`
  data.json                          where the data set was when training began, and the scans without labels
  validation/                        by `pretrain`: the volumes that it is validated on
  codes.json                         the DICOM codes of its classes, if its dataset.json has any
  predictions/  evaluation/          of the test set, by `train --test`
  report.html  figures/  auxiliary/  by `report`
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from sam2_3dmed.config import parse
from sam2_3dmed.dicom.codes import Code, read_codes, write_codes
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.files.structured import read_object, read_yaml
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.processes.atomic import naming, replacing, require_path, write_text
from sam2_3dmed.run.run_config import CONFIG_FILE, FORMAT, RunRecord, Sam2Record, find_run
from sam2_3dmed.run.systems import OURS, Backend, find_system

MODEL_FILE = "model.safetensors"
SPLIT_FILE = "split.json"
DATA_FILE = "data.json"
CODES_FILE = "codes.json"


def read_record(folder: Path) -> RunRecord:
    """Read a run folder's `config.yaml`; a UserError for no run folder, one of another version, or a broken file."""
    require_path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsError(f"{folder}: not a run folder (it has no {CONFIG_FILE})")
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise WeightsError(
            f"{folder}: another version wrote this run ({CONFIG_FILE} has no format: {FORMAT}); train it again, or use "
            "the version of sam2-3dmed that is named in it"
        )
    try:
        kind = find_system(str(content.get("system"))).record_type
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    record: RunRecord = parse(content, kind, str(path))
    return record


def read_sam2_record(folder: Path, what: str) -> Sam2Record:
    """As `read_record`, with a WeightsError for a run of another system. what: needs a run of ours."""
    record = read_record(folder)
    if record.system != OURS:
        raise WeightsError(f"{folder}: {what} is for runs of SAM2-3dMed, and this is one of {record.about}")
    return cast(Sam2Record, record)


def remember_data(folder: Path, data: Path, unlabelled: Path | None = None, names: Sequence[str] = ()) -> None:
    """Write where the data set is, in a file of its own, which need not be given away with the model.

    unlabelled, names: the folder of further scans without labels, and the names of all scans without labels.
    """
    places = {"folder": data, "unlabelled": unlabelled}
    content: dict[str, Any] = {name: str(place.resolve()) for name, place in places.items() if place is not None}
    content |= {"without_labels": list(names)} if names else {}
    write_text(folder / DATA_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def remembered_without_labels(folder: Path) -> list[str]:
    """The names of the scans without labels that a run learns from."""
    path = folder / DATA_FILE
    names = read_object(path).get("without_labels", []) if path.is_file() else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: without_labels: expected a list of names")
    return names


def remembered_data(folder: Path, name: str = "folder") -> Path | None:
    """Where the data set was when training began; None if there is no data.json, a DataError if it is broken.

    name: `folder`, or `unlabelled` for the folder of further scans, if there was one.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        return None
    content = read_object(path)
    found = content.get(name)
    if found is None and name != "folder":
        return None
    if not isinstance(found, str) or "\0" in found:
        raise DataError(f'{path}: expected {{"{name}": PATH}}')
    return Path(found)


def remember_codes(folder: Path, codes: Mapping[str, Code]) -> None:
    """Write the DICOM codes of the classes, or remove the file if there are none."""
    if codes:
        write_codes(folder / CODES_FILE, codes)
    else:
        (folder / CODES_FILE).unlink(missing_ok=True)


def remembered_codes(folder: Path) -> dict[str, Code]:
    """The DICOM codes of the run's classes, by name; empty if there is no such file, a DataError if it is broken."""
    path = folder / CODES_FILE
    return read_codes(path) if path.is_file() else {}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run; a WeightsError if the file is missing or damaged, or a number in it is not finite."""
    from sam2_3dmed.model.weights import read_tensors

    return read_tensors(path)


def fill_network(network: nn.Module, state: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load weights; a WeightsError names the keys that are missing, unexpected, or of another shape or type."""
    types = {name: weight.dtype for name, weight in network.state_dict().items()}
    if other := [name for name, tensor in state.items() if tensor.dtype != types.get(name, tensor.dtype)]:
        raise WeightsError(
            f"{source}: not the weights of this model: {other[0]} is of type {state[other[0]].dtype}, not "
            f"{types[other[0]]}"
        )
    shared = {name: state[first] for name, first in _first_names(network).items() if first in state}
    try:
        network.load_state_dict({**state, **shared}, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise WeightsError(f"{source}: not the weights of this model: {' '.join(lines)}"[:1000]) from None


def _first_names(network: nn.Module) -> dict[str, str]:
    """From each name of a weight to its first name, since a network may have one under several names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(weight), name) for name, weight in network.state_dict(keep_vars=True).items()}


def save_model(network: nn.Module, record: RunRecord, folder: Path) -> None:
    """Write `config.yaml` and then `model.safetensors`, which marks a finished run; a DataError if they cannot be."""
    from safetensors.torch import save

    record.write(folder)
    weights = network.state_dict()
    state = {name: weights[name].detach().cpu().contiguous() for name in _first_names(network).values()}
    with naming(folder, "the model cannot be written"), replacing(folder / MODEL_FILE) as file:
        file.write(save(state))


def load_model(
    folder: Path | str, *, device: str | torch.device | None = None, backend: Backend = "pytorch", **settings: Any
) -> Segmenter:
    """The trained model of a run folder, whatever its system, ready to predict.

    Args:
        folder: of the run; `nano` is the promptable network that comes with the package.
        device: none takes the GPU if there is one.
        backend: `onnxruntime` runs what `export` wrote, on the CPU.
        settings: of the recipe's section `inference`, instead of the run's.

    Raises:
        WeightsError: not a finished run folder, or broken weights.
        ConfigError: a broken config.yaml, a setting or device that does not exist, or a backend that the system lacks.
    """
    folder = find_run(folder)
    record = read_record(folder)
    system = find_system(record.system)
    if backend in get_args(Backend) and backend not in system.backends:
        raise ConfigError(f"{folder}: --backend {backend} is for SAM2-3dMed, and this is {record.about}")
    model_files(folder, backend)
    if backend == "onnxruntime" and device is not None and str(device) != "cpu":
        raise ConfigError(f"device {device}: --backend onnxruntime runs on the CPU")
    system.require()
    chosen = torch.device("cpu") if backend == "onnxruntime" else pick_device(device)
    return system.load(folder, record, device=chosen, backend=backend, **settings)


def model_files(folder: Path, backend: str = "pytorch") -> tuple[Path, ...]:
    """The files that decide on predictions; a WeightsError if the run is not finished, or not exported."""
    if backend not in get_args(Backend):
        raise ConfigError(f"--backend {backend}: expected {' or '.join(get_args(Backend))}")
    exported = sorted(folder.glob("*.onnx"))
    if backend == "onnxruntime":
        if not exported:
            raise WeightsError(f"{folder}: has no ONNX files; sam2-3dmed export --model {folder} -o FOLDER makes them")
        return folder / CONFIG_FILE, *exported
    if not (folder / MODEL_FILE).is_file():
        if exported:
            raise WeightsError(f"{folder}: holds ONNX files and no {MODEL_FILE}; --backend onnxruntime runs them")
        raise WeightsError(
            f"{folder}: this run is not finished (it has no {MODEL_FILE}); train --resume goes on with it"
        )
    return folder / CONFIG_FILE, folder / MODEL_FILE


def pick_device(name: str | torch.device | None) -> torch.device:
    """A device that works here, else a ConfigError; None takes the GPU if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise ConfigError(f"device {name}: {str(error).splitlines()[0]}") from None
    return device


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore a full disk: an error follows where results are written."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append the log of the package to a file."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("sam2_3dmed")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        handler.close()
