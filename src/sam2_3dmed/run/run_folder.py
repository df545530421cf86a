"""The run folder: what training leaves behind, and how anything is loaded from it.

runs/NAME/
  config.yaml  model.safetensors    all that `predict` needs, and it moves between machines
               *.onnx               instead of model.safetensors, in what `export` wrote
  split.json   curves.csv   log.txt   tensorboard/   checkpoints/   pictures/
               schedule.json         what `train --minutes` came to
  data.json                          where the data set was when training began
  codes.json                         the DICOM codes of its classes, if its dataset.json gives any
  predictions/  evaluation/          of the test set, by `train --test`
  report.html  figures/  auxiliary/  by `report`
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from sam2_3dmed.dicom.codes import Code, read_codes, write_codes
from sam2_3dmed.encoders.precision import bf16_is_fast
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.inference.manifest import checksum
from sam2_3dmed.inference.passes import PassOptions
from sam2_3dmed.inference.postprocess import PostProcessing
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.processes.atomic import replacing, write_text
from sam2_3dmed.run.run_config import (
    CONFIG_FILE,
    KIND,
    NNUNET_KIND,
    PATCH_KIND,
    NnunetRecord,
    PatchRecord,
    RunRecord,
    Sam2Record,
)

MODEL_FILE = "model.safetensors"
DATA_FILE = "data.json"
CODES_FILE = "codes.json"
Backend = Literal["pytorch", "onnxruntime"]

logger = logging.getLogger(__name__)


def remember_data(folder: Path, data: Path) -> None:
    """Write where the data set is; a file of its own, so that a model that is given away does not tell."""
    write_text(folder / DATA_FILE, json.dumps({"folder": str(data.resolve())}, ensure_ascii=False) + "\n")


def remembered_data(folder: Path) -> Path | None:
    """Where the data set was when the run was trained; None if the run does not say.

    Raises:
        DataError: a broken data.json.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        return None
    try:
        return Path(json.loads(path.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f'{path}: expected {{"folder": PATH}}') from None


def remember_codes(folder: Path, codes: Mapping[str, Code]) -> None:
    """Write the DICOM codes of the classes; without any there is no file."""
    if codes:
        write_codes(folder / CODES_FILE, codes)
    else:
        (folder / CODES_FILE).unlink(missing_ok=True)


def remembered_codes(folder: Path) -> dict[str, Code]:
    """The DICOM codes of the run's classes, by name; none if the run does not say.

    Raises:
        DataError: a broken codes.json.
    """
    path = folder / CODES_FILE
    return read_codes(path) if path.is_file() else {}


def rebuild(record: Sam2Record) -> SAM2For3dMed:
    """The network of a record, with fresh weights: what the weights of the finished run fit into."""
    return build_network(**record.model.model_dump())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: no such file, or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    return state


def fill_network(network: nn.Module, state: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load weights strictly.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape; they are named.
    """
    shared = {name: state[first] for name, first in _first_names(network).items() if first in state}
    try:
        network.load_state_dict({**state, **shared}, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise WeightsError(f"{source}: not the weights of this model: {' '.join(lines)}"[:1000]) from None


def _first_names(network: nn.Module) -> dict[str, str]:
    """For each name of a weight the first name that it has: a network may know one by several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(weight), name) for name, weight in network.state_dict(keep_vars=True).items()}


def save_model(network: nn.Module, record: RunRecord, folder: Path) -> None:
    """Write `config.yaml` and `model.safetensors`; the last is what marks a finished run.

    Raises:
        DataError: they cannot be written.
    """
    from safetensors.torch import save

    record.write(folder)
    weights = network.state_dict()
    state = {name: weights[name].detach().cpu().contiguous() for name in _first_names(network).values()}
    try:
        with replacing(folder / MODEL_FILE) as file:
            file.write(save(state))
    except OSError as error:
        raise DataError(f"{folder}: the model cannot be written: {error.strerror or error}") from None


def make_predictor(network: SAM2For3dMed, record: Sam2Record, **options: Any) -> Predictor:
    """A predictor with what the run was told; `options`, of `PassOptions` and `PostProcessing`, go before that.

    Raises:
        ConfigError: there is no such option.
    """
    told = record.recipe.inference.model_dump()
    told["slab_slices"] = record.recipe.slab_slices or record.plan.slab_slices
    told |= options
    of_passes, of_post = ({field.name for field in fields(kind)} for kind in (PassOptions, PostProcessing))
    if unknown := told.keys() - of_passes - of_post:
        raise ConfigError(f"no option {min(unknown)!r}; there are {', '.join(sorted(of_passes | of_post))}")
    return Predictor(
        network,
        preprocessing=record.plan.preprocessing,
        labels=record.plan.labels,
        passes=PassOptions(**{name: value for name, value in told.items() if name in of_passes}),
        post=PostProcessing(**{name: value for name, value in told.items() if name in of_post}),
    )


def _load_sam2_3dmed(folder: Path, record: Sam2Record, device: torch.device, **options: Any) -> Predictor:
    network = rebuild(record)
    fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
    return make_predictor(network.to(device).eval(), record, **{"bf16": bf16_is_fast(device)} | options)


def _load_onnx(folder: Path, record: Sam2Record, device: str | torch.device | None, **options: Any) -> Predictor:
    from sam2_3dmed.inference.onnx_network import OnnxNetwork

    if device is not None and str(device) != "cpu":
        raise ConfigError(f"device {device}: --backend onnxruntime runs on the CPU")
    network = OnnxNetwork(
        folder,
        run_sha256=record.sha256(),
        model_sha256=checksum([folder / MODEL_FILE]) if (folder / MODEL_FILE).is_file() else None,
        slab_slices=record.recipe.slab_slices or record.plan.slab_slices,
    )
    # It has what slabs mode uses of a network, and `require` lets nothing else pass.
    predictor = make_predictor(cast(SAM2For3dMed, network), record, **options)
    network.require(predictor.passes)
    return predictor


def _load_patches(folder: Path, record: PatchRecord, device: torch.device, **options: Any) -> Segmenter:
    from sam2_3dmed.baselines.predictor import make_patch_predictor
    from sam2_3dmed.baselines.systems import require_system

    require_system(record.model.system)
    network = record.model.build()
    fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
    told = {"bf16": bf16_is_fast(device)} | options
    return make_patch_predictor(network.to(device).eval(), record.model, record.plan, record.recipe, **told)


def _load_nnunet(folder: Path, record: NnunetRecord, device: torch.device, **options: Any) -> Segmenter:
    from sam2_3dmed.baselines.nnunet.predictor import make_nnunet_predictor

    weights = folder / MODEL_FILE
    return make_nnunet_predictor(weights, record.model, record.plan, record.recipe, device, **options)


LOADERS: Mapping[str, Callable[..., Segmenter]] = {
    KIND: _load_sam2_3dmed,
    PATCH_KIND: _load_patches,
    NNUNET_KIND: _load_nnunet,
}
"""From the kind of model in a run's record to the function that loads it."""


def load_model(
    folder: Path, *, device: str | torch.device | None = None, backend: Backend = "pytorch", **options: Any
) -> Segmenter:
    """The model of a run folder, of whatever kind, or with `onnxruntime` of what `export` wrote, ready to predict.

    device: none takes the GPU if there is one. Without the option bf16, PyTorch computes in it where it is fast.

    Raises:
        WeightsError: not a finished run folder. ConfigError: a broken record.
    """
    record = RunRecord.read(folder)
    if backend == "onnxruntime":
        if not isinstance(record, Sam2Record):
            raise ConfigError(f"{folder}: --backend onnxruntime is for SAM2-3dMed, and this is {record.about}")
        model_files(folder, backend)
        return _load_onnx(folder, record, device, **options)
    model_files(folder, backend)
    return LOADERS[record.kind](folder, record, _device(device), **options)


def model_files(folder: Path, backend: Backend = "pytorch") -> tuple[Path, ...]:
    """The files that decide what a finished run, or its export, predicts.

    Raises:
        ConfigError: no such backend. WeightsError: the run is not finished, or not exported.
    """
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


def _device(name: str | torch.device | None) -> torch.device:
    """A device that works here.

    Raises:
        ConfigError: torch does not know it, or this machine does not have it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise ConfigError(f"device {name}: {str(error).splitlines()[0]}") from None
    return device


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """On a full disk: whoever writes what matters says so, in a line."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what the package logs to a file."""
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
