"""The recipes of the systems that learn from patches and of the real nnU-Net, and the records of their runs."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from sam2_3dmed.config import InferenceConfig, SplitConfig, TrainingConfig
from sam2_3dmed.config.schema import Fraction, Frozen, Positive
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.systems import find_system

_NOT_IN_TRAINING = (
    *("single_slice_fraction", "slab_rate", "activation_checkpointing", "encoder", "lora_rank"),
    *("encoder_slices", "encoder_rate", "layer_decay"),
)
_NOT_IN_INFERENCE = ("mode", "direction", "shifts", "compile")
_NOT_IN_NNUNET = ("mode", "direction", "batch_size", "shifts", "precision", "compile")

Count = Annotated[int, Field(ge=1)]
Configuration = Literal["2d", "3d_fullres", "3d_lowres"]


def require_same(in_plan: int, in_model: int, what: str) -> None:
    """Raise ValueError if a plan has other classes or channels than the network."""
    if in_plan != in_model:
        raise ValueError(f"the plan has {in_plan} {what}, and the network {in_model}")


def refuse_options(config: BaseModel, kind: type[BaseModel], *names: str, systems: str) -> None:
    """Raise ValueError for options of `kind` that are set and would have no effect on these systems."""
    changed = [name for name in names if getattr(config, name) != kind.model_fields[name].default]
    if changed:
        raise ValueError(f"{', '.join(changed)}: not for {systems}")


class PatchModelConfig(Frozen):
    """The network; what is none is planned from the training cases."""

    size: Literal["auto", "full", "small"] = "auto"
    """`auto`: full on a GPU, and on a CPU a form of the same network that learns in minutes."""
    patch: tuple[int, int, int] | None = None
    """Voxels along (D, H, W); rounded up to what the network can halve."""
    spacing_mm: tuple[float, float, float] | None = None
    """Of the grid that volumes are resampled to, along (D, H, W)."""
    kernel: Literal[3, 5] = 3
    """Of MedNeXt's convolutions."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Channels of the U-Net's first level; each further one has twice as many, at most 320."""
    text: str | None = None
    """Universal: a folder of a CLIP model (Hugging Face) that embeds the classes' names; none: they are learnt."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if any(number <= 0 for number in (*(self.patch or ()), *(self.spacing_mm or ()))):
            raise ValueError("patch and spacing_mm must be positive")
        return self


class PatchAugmentationConfig(Frozen):
    """Chances, and how far; about nnU-Net's."""

    flip: Fraction = 0.5
    """Along each axis."""
    affine: Fraction = 0.3
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    """About each axis; in the plane only where slices lie far apart."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25
    noise: Fraction = 0.1
    noise_std: Annotated[float, Field(ge=0)] = 0.3
    """In standard deviations of the intensities, the highest that is drawn."""
    intensity: Fraction = 0.15
    """Chance of each of brightness, contrast and gamma."""


class PatchTrainingConfig(TrainingConfig):
    """As `TrainingConfig`; a sample is a patch here."""

    schedule: Literal["poly", "cosine"] = "poly"
    """`poly`: the rate falls as (1 - progress) ** 0.9."""

    @model_validator(mode="after")
    def _of_patches(self) -> Self:
        refuse_options(self, TrainingConfig, *_NOT_IN_TRAINING, systems="systems that learn from patches")
        return self


class PatchInferenceConfig(InferenceConfig):
    """As `InferenceConfig`, without an order of slices; a slab is a patch here."""

    @model_validator(mode="after")
    def _of_patches(self) -> Self:
        refuse_options(self, InferenceConfig, *_NOT_IN_INFERENCE, systems="systems that learn from patches")
        return self


class PatchConfig(Frozen):
    """Every option of a run of a patch-based system."""

    system: str
    model: PatchModelConfig = PatchModelConfig()
    augmentation: PatchAugmentationConfig = PatchAugmentationConfig()
    training: PatchTrainingConfig = PatchTrainingConfig()
    split: SplitConfig = SplitConfig()
    inference: PatchInferenceConfig = PatchInferenceConfig()

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.model.text is not None and self.system != "universal":
            raise ValueError(f"model.text is for universal, not for {self.system}")
        if self.model.kernel != 3 and not self.system.startswith("mednext"):
            raise ValueError(f"model.kernel is for mednext, not for {self.system}")
        if self.model.width is not None and self.system != "unet":
            raise ValueError(f"model.width is for unet, not for {self.system}")
        return self

    @property
    def names(self) -> str | None:
        """How the network uses the names of classes; None if it does not."""
        if self.system != "universal":
            return None
        return "learnt" if self.model.text is None else "embedded by CLIP"


class Intensities(Frozen):
    """Mean and standard deviation of a channel after `Preprocessing`; none: those of each volume."""

    mean: float | None = None
    std: float | None = None


class PatchSpec(Frozen):
    """Everything that builds the network again and brings a volume to its input. Axes are (D, H, W)."""

    system: str
    size: str
    spacing_mm: tuple[Positive, Positive, Positive]
    """Of the grid that patches are cut from."""
    patch: tuple[Count, Count, Count]
    intensities: tuple[Intensities, ...]
    num_classes: Count
    regions: bool = False
    """Whether classes overlap, so that each has a sigmoid."""
    network: dict[str, Any]
    """The arguments of its constructor."""
    text: str | None = None
    """How the names of the classes are embedded; none if they are not."""

    @property
    def has_background(self) -> bool:
        """Whether channel 0 of the logits is the background's, for a softmax; else each class has a sigmoid."""
        return self.system != "universal" and not self.regions

    def normalise(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """Channels of mean 0 and standard deviation 1: (D, C, H, W) in [0, 1] -> (C, D, H, W)."""
        channels = np.moveaxis(image, 1, 0).astype(np.float32)
        for channel, known in zip(channels, self.intensities, strict=True):
            mean = channel.mean(dtype=np.float64) if known.mean is None else known.mean
            std = channel.std(dtype=np.float64) if known.std is None else known.std
            channel -= np.float32(mean)
            channel /= np.float32(max(std, 1e-6))
        return channels


class PatchRecord(RunRecord):
    """The record of a patch-based system."""

    model: PatchSpec
    recipe: PatchConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        require_same(self.plan.num_classes, self.model.num_classes, "classes")
        require_same(len(self.plan.channels), len(self.model.intensities), "channels")
        if bool(self.plan.regions) != self.model.regions:
            raise ValueError("only one of plan and model has regions")
        return self

    @property
    def about(self) -> str:
        spec = self.model
        patch = " x ".join(map(str, spec.patch))
        spacing = " x ".join(f"{value:.3g}" for value in spec.spacing_mm)
        text = f", names {spec.text}" if spec.text else ""
        return f"{find_system(spec.system).title}, {spec.size}, patches of {patch} voxels of {spacing} mm{text}"


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
        refuse_options(self, InferenceConfig, *_NOT_IN_NNUNET, systems="nnU-Net")
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

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not isinstance(self.dataset.get("labels"), dict):
            raise ValueError("dataset has no labels")
        try:
            _ = self.patch_size
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"plans have no {self.configuration} with a patch_size") from None
        return self

    @property
    def patch_size(self) -> list[int]:
        """Voxels of a patch."""
        return [int(size) for size in self.plans["configurations"][self.configuration]["patch_size"]]


class NnunetRecord(RunRecord):
    """The record of nnU-Net."""

    system: Literal["nnunet"] = "nnunet"
    model: NnunetSpec
    recipe: NnunetConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        in_network = len(self.model.dataset["labels"].keys() - {"background", "ignore"})
        require_same(self.plan.num_classes, in_network, "classes")
        return self

    @property
    def about(self) -> str:
        patch = " x ".join(map(str, self.model.patch_size))
        return f"nnU-Net, {self.model.configuration}, patches of {patch} voxels"
