"""What a run is told: frozen models with every option, checked where they are made.

A `Plan` says what the data set dictates (axis, intensities, classes, window); a `RunConfig` says what we choose (model,
loss, training). Presets are functions, and an ablation is a preset with one thing changed.
"""

from sam2_3dmed.config.parsing import parse, read_yaml
from sam2_3dmed.config.presets import ABLATIONS, PRESETS, auto, paper, read_recipe, scratch, with_settings
from sam2_3dmed.config.schema import (
    AugmentationConfig,
    ChannelPlan,
    InferenceConfig,
    LossConfig,
    ModelConfig,
    Plan,
    RunConfig,
    SplitConfig,
    TrainingConfig,
)

__all__ = [
    "ABLATIONS",
    "PRESETS",
    "AugmentationConfig",
    "ChannelPlan",
    "InferenceConfig",
    "LossConfig",
    "ModelConfig",
    "Plan",
    "RunConfig",
    "SplitConfig",
    "TrainingConfig",
    "auto",
    "paper",
    "parse",
    "read_recipe",
    "read_yaml",
    "scratch",
    "with_settings",
]
