"""The recipe of the real nnU-Net, and the record of its runs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sam2_3dmed.baselines.recipe import refuse_options
from sam2_3dmed.config import InferenceConfig, SplitConfig
from sam2_3dmed.config.schema import Frozen, Positive
from sam2_3dmed.run.run_config import RunRecord

Configuration = Literal["2d", "3d_fullres", "3d_lowres"]
_NOT_IN_INFERENCE = ("mode", "direction", "batch_size", "shifts", "precision", "compile")


class NnunetModelConfig(Frozen):
    """What nnU-Net plans. Its cascade and its ensembles take several runs and are not here."""

    planner: Literal["ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"] = (
        "ExperimentPlanner"
    )
    """Its plain U-Net, as in the literature, or a residual encoder for GPUs of 9 to 11, 24 or 40 GB."""
    configuration: Configuration = "3d_fullres"


class NnunetTrainingConfig(Frozen):
    """Budget and seed; all else is nnU-Net's own."""

    epochs: Annotated[int, Field(ge=1)] = 1000
    steps_per_epoch: Annotated[int, Field(ge=1)] = 250
    minutes: Positive | None = None
    """Instead of both: as many as fit into this time, no more than they say; measured when training begins."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the first weights; its loaders draw seeds of their own, so no run can be repeated to the digit."""


class NnunetInferenceConfig(InferenceConfig):
    """nnU-Net's sliding windows, then our post-processing."""

    flips: bool = True
    """The mean over all mirrored versions, up to eight, as nnU-Net does by default."""

    @model_validator(mode="after")
    def _of_nnunet(self) -> Self:
        refuse_options(self, InferenceConfig, *_NOT_IN_INFERENCE, systems="nnU-Net")
        return self


class NnunetConfig(Frozen):
    """Every option of a run of nnU-Net."""

    system: Literal["nnunet"] = "nnunet"
    model: NnunetModelConfig = NnunetModelConfig()
    training: NnunetTrainingConfig = NnunetTrainingConfig()
    split: SplitConfig = SplitConfig()
    inference: NnunetInferenceConfig = NnunetInferenceConfig()


class NnunetSpec(Frozen):
    """Everything that builds its network again: nnU-Net's plans.json and dataset.json, and which of its plans."""

    configuration: Configuration
    plans: dict[str, Any]
    dataset: dict[str, Any]


class NnunetRecord(RunRecord):
    """The record of nnU-Net."""

    system: Literal["nnunet"] = "nnunet"
    model: NnunetSpec
    recipe: NnunetConfig

    @property
    def about(self) -> str:
        patch = self.model.plans["configurations"][self.model.configuration]["patch_size"]
        return f"nnU-Net, {self.model.configuration}, patches of {' x '.join(map(str, patch))} voxels"
