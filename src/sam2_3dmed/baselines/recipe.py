"""What a run of a patch-based system is told, and what each system's own recipe says."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sam2_3dmed.baselines.systems import PATCH_SYSTEMS
from sam2_3dmed.config import InferenceConfig, SplitConfig, TrainingConfig, with_settings

# Of our own method; for anything that learns from patches they would be options without effect.
_NOT_FOR_PATCHES = (
    *("single_slice_fraction", "slab_rate", "activation_checkpointing", "encoder_slices", "encoder_rate"),
    "layer_decay",
)
_NOT_FOR_PATCHES_IN_INFERENCE = ("mode", "direction", "shifts")


def _require_default(config: BaseModel, kind: type[BaseModel], names: Sequence[str]) -> None:
    changed = [name for name in names if getattr(config, name) != kind.model_fields[name].default]
    if changed:
        raise ValueError(f"{', '.join(changed)}: not for systems that learn from patches")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PatchModelConfig(_Frozen):
    """The network; what is none is planned from the training cases."""

    size: Literal["auto", "full", "small"] = "auto"
    """`auto`: full on a GPU, and on a CPU a form of the same network that learns in minutes."""
    patch: tuple[int, int, int] | None = None
    """Voxels along (D, H, W); rounded up to what the network can halve."""
    spacing_mm: tuple[float, float, float] | None = None
    """Of the grid that volumes are resampled to, along (D, H, W)."""
    kernel: Literal[3, 5] = 3
    """Of MedNeXt's convolutions."""
    text: str | None = None
    """Universal: a folder of a CLIP model (Hugging Face) that embeds the classes' names; none: they are learnt."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if any(number <= 0 for number in (*(self.patch or ()), *(self.spacing_mm or ()))):
            raise ValueError("patch and spacing_mm must be positive")
        return self


class PatchAugmentationConfig(_Frozen):
    """Chances, and how far; about nnU-Net's."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Along each axis."""
    affine: Annotated[float, Field(ge=0, le=1)] = 0.3
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    """About each axis; in the plane only where slices lie far apart."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25
    noise: Annotated[float, Field(ge=0, le=1)] = 0.1
    noise_std: Annotated[float, Field(ge=0)] = 0.3
    """In standard deviations of the intensities, the highest that is drawn."""
    intensity: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Chance of each of brightness, contrast and gamma."""


class PatchTrainingConfig(TrainingConfig):
    """As `TrainingConfig`; a window is a patch here."""

    schedule: Literal["poly", "cosine"] = "poly"
    """`poly`: the rate falls as (1 - progress) ** 0.9."""

    @model_validator(mode="after")
    def _of_patches(self) -> Self:
        _require_default(self, TrainingConfig, _NOT_FOR_PATCHES)
        return self


class PatchInferenceConfig(InferenceConfig):
    """As `InferenceConfig`, without an order of slices; a window is a patch here."""

    @model_validator(mode="after")
    def _of_patches(self) -> Self:
        _require_default(self, InferenceConfig, _NOT_FOR_PATCHES_IN_INFERENCE)
        return self


class PatchConfig(_Frozen):
    """All that a run of a patch-based system is told besides the data."""

    system: str
    model: PatchModelConfig = PatchModelConfig()
    augmentation: PatchAugmentationConfig = PatchAugmentationConfig()
    training: PatchTrainingConfig = PatchTrainingConfig()
    split: SplitConfig = SplitConfig()
    inference: PatchInferenceConfig = PatchInferenceConfig()

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.system not in PATCH_SYSTEMS:
            raise ValueError(f"no such system; there are {', '.join(PATCH_SYSTEMS)}")
        if self.model.text is not None and self.system != "universal":
            raise ValueError(f"model.text is for universal, not for {self.system}")
        if self.model.kernel != 3 and not self.system.startswith("mednext"):
            raise ValueError(f"model.kernel is for mednext, not for {self.system}")
        return self

    @property
    def names(self) -> str | None:
        """What a network makes of the names of classes; None for one that asks for none."""
        if self.system != "universal":
            return None
        return "learnt" if self.model.text is None else "embedded by CLIP"


_NNUNET: Mapping[str, Any] = {
    "epochs": 1000,
    "samples_per_epoch": 500,
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "weight_decay": 3e-5,
    "final_learning_rate_fraction": 0.0,
    "clip_gradient_norm": 12.0,
    "foreground_fraction": 1 / 3,
    "validate_every": 50,
    "patience": 4,
}

_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "nnunet": _NNUNET,
    "mednext": {**_NNUNET, "optimizer": "adamw", "learning_rate": 1e-3},
    "universal": {
        **_NNUNET,
        "optimizer": "adamw",
        "schedule": "cosine",
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "warmup_fraction": 0.1,
        "foreground_fraction": 2 / 3,
    },
}
"""How each was trained by its authors: epochs of 250 steps of 2 patches. nnFormer's is nnU-Net's; MedNeXt's is that
with AdamW; the Universal model's has AdamW, a warm-up and a cosine. Early stopping, which none of them has, is ours."""


def patch_recipe(system: str, settings: Sequence[str] = ()) -> PatchConfig:
    """The own recipe of one of PATCH_SYSTEMS with `section.key=value` settings applied.

    Raises: ConfigError for a setting that is not valid.
    """
    training = PatchTrainingConfig(**_RECIPES[PATCH_SYSTEMS[system].recipe])
    return with_settings(PatchConfig(system=system, training=training), settings)
