"""What a run of the real nnU-Net is told, and what is known of its model."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sam2_3dmed.config import SplitConfig, with_settings
from sam2_3dmed.config.schema import Volume

Configuration = Literal["2d", "3d_fullres", "3d_lowres"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NnunetModelConfig(_Frozen):
    """What nnU-Net plans. Its cascade and its ensembles, which take several runs, are not here."""

    planner: Literal["ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"] = (
        "ExperimentPlanner"
    )
    """Its plain U-Net, as in the literature, or a residual encoder for GPUs of 9 to 11, 24 or 40 GB."""
    configuration: Configuration = "3d_fullres"


class NnunetTrainingConfig(_Frozen):
    """Budget and seed; all else is nnU-Net's own."""

    epochs: Annotated[int, Field(ge=1)] = 1000
    steps_per_epoch: Annotated[int, Field(ge=1)] = 250
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Instead of both: as many as fit into this time, no more than they say; measured when training begins."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the first weights; its loaders draw seeds of their own, so no run can be repeated to the digit."""


class NnunetInferenceConfig(_Frozen):
    """nnU-Net's sliding windows; then what ours does to masks."""

    flips: bool = True
    """The mean over all mirrored versions, up to eight, as nnU-Net does by default."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    largest_component: bool | tuple[str, ...] = False
    min_volume_ml: Volume | dict[str, Volume] = 0.0
    fill_holes: bool | tuple[str, ...] = False


class NnunetConfig(_Frozen):
    """All that a run of nnU-Net is told besides the data."""

    system: Literal["nnunet"] = "nnunet"
    model: NnunetModelConfig = NnunetModelConfig()
    training: NnunetTrainingConfig = NnunetTrainingConfig()
    split: SplitConfig = SplitConfig()
    inference: NnunetInferenceConfig = NnunetInferenceConfig()


class NnunetSpec(_Frozen):
    """All that it takes to build its network again: nnU-Net's plans.json and dataset.json, and which of its plans."""

    configuration: Configuration
    plans: dict[str, Any]
    dataset: dict[str, Any]

    @property
    def about(self) -> str:
        """The model in a few words."""
        patch = " x ".join(map(str, self.plans["configurations"][self.configuration]["patch_size"]))
        return f"nnU-Net, {self.configuration}, patches of {patch} voxels"


def nnunet_recipe(settings: Sequence[str] = ()) -> NnunetConfig:
    """nnU-Net's defaults with `section.key=value` settings applied.

    Raises: ConfigError for a setting that is not valid.
    """
    return with_settings(NnunetConfig(), settings)
