"""`config.yaml` of a run folder: everything that made a model, besides its weights."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.processes.atomic import write_text

CONFIG_FILE = "config.yaml"
FORMAT: Final = 2
NANO = "nano"
"""The name of the promptable network that comes with the package, pre-trained on made-up anatomy."""
_SHIPPED = Path(__file__).parent.parent / "pretrained"


def find_run(run: str | Path) -> Path:
    """The folder of a run; that of `nano` is in the package."""
    return _SHIPPED / NANO if str(run) == NANO else Path(run)


class RunRecord(BaseModel, ABC):
    """The content of `config.yaml`. Each system has a subclass with the types of its own recipe.

    A system whose data decide on the network (a patch size, for example) adds a field `model`.

    Args:
        recipe: a frozen pydantic model with the sections `split` and `inference`.
        weights: where training started from, as for `train --weights`.
        versions: of the packages that trained it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    decisive: ClassVar[Mapping[str, Any]] = {"system": True, "model": True, "plan": True}
    """The fields that decide what the model's outputs mean, as pydantic's `include`."""
    has_auxiliary: ClassVar[bool] = False
    """Whether the model predicts boundary maps and relative positions, too."""

    format: Literal[2] = FORMAT
    system: str
    plan: Plan
    recipe: Any
    weights: str
    versions: dict[str, str]

    @property
    @abstractmethod
    def about(self) -> str:
        """The model in a few words."""

    @property
    def needs_reference(self) -> bool:
        """Whether prediction needs a reference mask, to draw prompts from."""
        return False

    def write(self, folder: Path) -> None:
        """Write `config.yaml`, whole or not at all."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(folder / CONFIG_FILE, text)

    def sha256(self) -> str:
        """The checksum of everything that decides what the model's outputs mean."""
        return hashlib.sha256(self.model_dump_json(include=dict(self.decisive)).encode("utf-8")).hexdigest()


class Sam2Record(RunRecord):
    """The record of SAM2-3dMed. The section `model` of its recipe is complete: see `NetworkConfig`."""

    decisive: ClassVar[Mapping[str, Any]] = {"system": True, "plan": True, "recipe": {"model"}}
    has_auxiliary = True

    system: Literal["sam2_3dmed"] = "sam2_3dmed"
    recipe: RunConfig

    @model_validator(mode="after")
    def _complete(self) -> Self:
        model = self.recipe.model
        open_keys = [key for key, value in model if value is None or (key == "size" and value == "auto")]
        if open_keys:
            raise ValueError(f"recipe.model.{open_keys[0]}: a run has a value here")
        return self

    @property
    def about(self) -> str:
        model = self.recipe.model
        text = f"size {model.size}, {model.image_size} pixels, {self.plan.slicing_axis} slices"
        every = model.box_every
        if model.promptable:
            return f"{text}, prompted"
        return f"{text}, boxes from the reference on one slice of {every}" if every else text

    @property
    def needs_reference(self) -> bool:
        return self.recipe.model.box_every > 0 or self.recipe.model.promptable
