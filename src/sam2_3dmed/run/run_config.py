"""`config.yaml` of a run folder: everything that made a model, besides its weights; a kind of record for each way."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig, NnunetSpec
from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.baselines.spec import PatchSpec
from sam2_3dmed.config import Plan, RunConfig, parse, read_yaml
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.processes.atomic import write_text

CONFIG_FILE = "config.yaml"
KIND = "sam2_3dmed"
PATCH_KIND = "patches"
NNUNET_KIND = "nnunet"


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
    memory: str = "recent"
    box_every: int = 0
    no_memory_token: bool = False
    channels: int | None = None


class RunRecord(BaseModel, ABC):
    """What the records of all kinds have: how the model is built, the plan of its data, what training was told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    model: ModelSpec | PatchSpec | NnunetSpec
    plan: Plan
    recipe: RunConfig | PatchConfig | NnunetConfig
    weights: str
    versions: dict[str, str]

    @property
    @abstractmethod
    def about(self) -> str:
        """The model in a few words."""

    @property
    def takes_boxes(self) -> bool:
        """Whether the model must be told where to look, by boxes that a reference gives."""
        return False

    def write(self, folder: Path) -> None:
        """Write `config.yaml`, whole or not at all."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(folder / CONFIG_FILE, text)

    def sha256(self) -> str:
        """The checksum of what a model's outputs mean: how it is built, and the plan."""
        meaning = self.model_dump_json(include={"kind", "model", "plan"})
        return hashlib.sha256(meaning.encode("utf-8")).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record of a run folder, of whatever kind it is.

        Raises:
            WeightsError: no run folder, or an unknown kind. ConfigError: a broken record.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise WeightsError(f"{folder}: not a run folder (it has no {CONFIG_FILE})")
        content = read_yaml(path)
        kind = content.get("kind") if isinstance(content, Mapping) else None
        if kind is not None and kind not in RECORDS:
            raise WeightsError(f"{folder}: unknown kind of model {kind!r}; known are {', '.join(RECORDS)}")
        record: RunRecord = parse(content, RECORDS[kind or KIND], str(path))
        return record


class Sam2Record(RunRecord):
    """Of a model of ours."""

    model: ModelSpec
    encoder_trains: bool
    recipe: RunConfig

    @property
    def about(self) -> str:
        """Size, pixels, how volumes are cut, and what it is told besides."""
        text = f"size {self.model.size}, {self.model.image_size} pixels, {self.plan.slicing_axis} slices"
        every = self.model.box_every
        return f"{text}, boxes from the reference on one slice of {every}" if every else text

    @property
    def takes_boxes(self) -> bool:
        """As the recipe's model.box_every says."""
        return self.model.box_every > 0


class PatchRecord(RunRecord):
    """Of a patch-based system."""

    model: PatchSpec
    recipe: PatchConfig

    @property
    def about(self) -> str:
        """System, size and patch."""
        return self.model.about


class NnunetRecord(RunRecord):
    """Of the real nnU-Net."""

    model: NnunetSpec
    recipe: NnunetConfig

    @property
    def about(self) -> str:
        """Configuration and patch."""
        return self.model.about


RECORDS: Mapping[str, type[RunRecord]] = {KIND: Sam2Record, PATCH_KIND: PatchRecord, NNUNET_KIND: NnunetRecord}
"""From the kind of model to its record."""


def read_sam2_record(folder: Path, what: str) -> Sam2Record:
    """The record of a run of ours.

    what: that asks for it, for the message.
    Raises: WeightsError if it is of another kind. UserError as `RunRecord.read`.
    """
    record = RunRecord.read(folder)
    if not isinstance(record, Sam2Record):
        raise WeightsError(f"{folder}: {what} is for runs of SAM2-3dMed, and this is one of {record.about}")
    return record
