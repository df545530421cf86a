"""The run folder: what training leaves behind, and how anything is loaded from it.

runs/NAME/
  config.yaml  model.safetensors    all that `predict` needs, and it moves between machines
  split.json   curves.csv   log.txt   tensorboard/   checkpoints/
  predictions/  evaluation/          of the test set, by `train --test`
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict

from sam2_3dmed.config import Plan, RunConfig, parse, read_yaml
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.sizes import SIZES
from sam2_3dmed.model.weights import DEFAULT_HUB_ID, Sam2Weights, load_sam2, read_sam2

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
KIND = "sam2_3dmed"

logger = logging.getLogger(__name__)


class ModelSpec(BaseModel):
    """The arguments of `build_network`, all of them, so that a model can be built again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str
    image_size: int
    num_classes: int
    srpp: bool
    share_context: bool
    srpp_memory: bool
    boundary: bool
    boundary_fusion: bool
    fusion_residual: bool
    pointer_time: bool


class RunRecord(BaseModel):
    """`config.yaml`: everything that made a model, besides its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    model: ModelSpec
    encoder_trains: bool
    plan: Plan
    recipe: RunConfig
    weights: str
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write `config.yaml`, whole or not at all."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        temporary = folder / f".{CONFIG_FILE}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / CONFIG_FILE)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record of a run folder.

        Raises:
            WeightsError: no run folder. ConfigError: a broken record.
        """
        if not (folder / CONFIG_FILE).is_file():
            raise WeightsError(f"{folder}: not a run folder (it has no {CONFIG_FILE})")
        record: RunRecord = parse(read_yaml(folder / CONFIG_FILE), cls, str(folder / CONFIG_FILE))
        return record


def make_model(config: RunConfig, plan: Plan, weights: str) -> tuple[SAM2For3dMed, RunRecord]:
    """The network a recipe and a plan ask for, with its first weights, and the record of it.

    weights: `auto`, a hub id, a Hugging Face folder, a Meta `.pt`, `none`, or one of our run folders.

    Raises:
        WeightsError: weights that cannot be had, or are of another model.
    """
    source = DEFAULT_HUB_ID if weights == "auto" else weights
    if source == "none":
        return _build(config, plan, "none", size=_size_from_scratch(config))
    if (Path(source) / CONFIG_FILE).is_file():
        return _from_run(config, plan, Path(source))
    found = read_sam2(source)
    if config.model.size not in ("auto", found.size):
        raise WeightsError(f"{source}: these are weights of size {found.size}, but model.size is {config.model.size}")
    return _build(config, plan, source, size=found.size, fill=found)


def _size_from_scratch(config: RunConfig) -> str:
    if config.model.size != "auto":
        return config.model.size
    size = "tiny" if torch.cuda.is_available() else "nano"
    logger.info("model.size is auto: from scratch on a %s, so %s", "GPU" if size == "tiny" else "CPU", size)
    return size


def _build(
    config: RunConfig,
    plan: Plan,
    source: str,
    *,
    size: str,
    fill: Sam2Weights | None = None,
    base: "RunRecord | None" = None,
) -> tuple[SAM2For3dMed, RunRecord]:
    """fill: SAM2's weights to start from; base: the run to start from, whose weights the caller loads."""
    model = config.model
    spec = ModelSpec(
        size=size,
        image_size=model.image_size or SIZES[size].image_size,
        num_classes=plan.num_classes,
        srpp=model.srpp,
        share_context=model.share_context,
        srpp_memory=model.srpp_memory,
        boundary=model.boundary,
        boundary_fusion=model.boundary_fusion,
        fusion_residual=model.fusion_residual,
        pointer_time=fill.pointer_time if fill else base.model.pointer_time if base else True,
    )
    network = build_network(**spec.model_dump())
    if fill is not None:
        load_sam2(network, fill)
    trains = model.train_encoder
    if trains is None:
        trains = base.encoder_trains if base else fill is None
    if not trains:
        network.encoder.freeze()
    return network, RunRecord(
        kind=KIND,
        model=spec,
        encoder_trains=trains,
        plan=plan,
        recipe=config,
        weights=source,
        versions={name: version(name) for name in ("sam2-3dmed", "torch", "transformers")},
    )


def _from_run(config: RunConfig, plan: Plan, folder: Path) -> tuple[SAM2For3dMed, RunRecord]:
    """Start from a run of ours; what belongs to classes starts fresh where their number differs."""
    old = RunRecord.read(folder)
    if config.model.size not in ("auto", old.model.size):
        raise WeightsError(f"{folder}: this run is of size {old.model.size}, but model.size is {config.model.size}")
    image_size = config.model.image_size or old.model.image_size
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_size": image_size})})
    network, record = _build(config, plan, str(folder), size=old.model.size, base=old)
    state = read_weights(folder / MODEL_FILE)
    if old.model.num_classes != plan.num_classes:
        logger.info(
            "%s has %d classes, this data %d: their parts start fresh",
            folder,
            old.model.num_classes,
            plan.num_classes,
        )
        state = {name: tensor for name, tensor in state.items() if "class_" not in name}
        state |= {name: tensor for name, tensor in network.state_dict().items() if "class_" in name}
    fill_network(network, state, folder / MODEL_FILE)
    return network, record


def rebuild(record: RunRecord) -> SAM2For3dMed:
    """The network of a record, with fresh weights: what a checkpoint of that run fits into."""
    network = build_network(**record.model.model_dump())
    if not record.encoder_trains:
        network.encoder.freeze()
    return network


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


def fill_network(network: SAM2For3dMed, state: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load weights strictly.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape; they are named.
    """
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise WeightsError(f"{source}: not the weights of this model: {' '.join(lines)}"[:1000]) from None


def save_model(network: SAM2For3dMed, record: RunRecord, folder: Path) -> None:
    """Write `config.yaml` and `model.safetensors`; the last is what marks a finished run.

    Raises:
        DataError: they cannot be written.
    """
    from safetensors.torch import save

    temporary = folder / f".{MODEL_FILE}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        temporary.write_bytes(save(state))
        temporary.replace(folder / MODEL_FILE)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{folder}: the model cannot be written: {error.strerror or error}") from None


def make_predictor(network: SAM2For3dMed, record: RunRecord, *, bf16: bool = False, **options: Any) -> Predictor:
    """A predictor with what the run was told; `options` go before that."""
    inference = record.recipe.inference
    told: dict[str, Any] = {
        "window_slices": record.recipe.window_slices or record.plan.window_slices,
        "overlap": inference.overlap,
        "direction": inference.direction,
        "batch_size": inference.batch_size,
        "keep_largest": inference.largest_component,
    }
    return Predictor(
        network,
        preprocessing=record.plan.preprocessing,
        labels=record.plan.labels,
        bf16=bf16,
        **(told | options),
    )


def _load_sam2_3dmed(folder: Path, record: RunRecord, device: torch.device, **options: Any) -> Predictor:
    network = rebuild(record)
    fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
    return make_predictor(network.to(device).eval(), record, **options)


LOADERS: Mapping[str, Callable[..., Predictor]] = {KIND: _load_sam2_3dmed}
"""From the kind of model in a run's record to the function that loads it."""


def load_predictor(folder: Path, *, device: str | torch.device | None = None, **options: Any) -> Predictor:
    """The model of a run folder, ready to predict. device: none takes the GPU if there is one.

    Raises:
        WeightsError: not a finished run folder. ConfigError: a broken record.
    """
    record = RunRecord.read(folder)
    if record.kind not in LOADERS:
        raise WeightsError(f"{folder}: unknown kind of model {record.kind!r}; known are {', '.join(LOADERS)}")
    if not (folder / MODEL_FILE).is_file():
        raise WeightsError(
            f"{folder}: this run is not finished (it has no {MODEL_FILE}); train --resume goes on with it"
        )
    return LOADERS[record.kind](folder, record, _device(device), **options)


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


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what the package logs to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("sam2_3dmed")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
