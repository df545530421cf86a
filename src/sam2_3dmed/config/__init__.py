"""What a run is told: frozen models with every option, checked where they are made.

A `Plan` says what the data set dictates (axis, intensities, classes, slab); a `RunConfig` says what we choose (model,
loss, training). Presets are functions; an ablation changes one thing of a preset, an addition goes beyond the paper.
"""

from sam2_3dmed.config.parsing import changed, parse, read_yaml
from sam2_3dmed.config.presets import (
    ABLATIONS,
    ADDITIONS,
    BASELINES,
    PRESETS,
    auto,
    paper,
    read_recipe,
    scratch,
    with_settings,
)
from sam2_3dmed.config.schema import (
    AugmentationConfig,
    ChannelPlan,
    FeatureCacheConfig,
    InferenceConfig,
    LossConfig,
    NetworkConfig,
    Plan,
    RunConfig,
    SplitConfig,
    TrainingConfig,
)

__all__ = [
    "ABLATIONS",
    "ADDITIONS",
    "BASELINES",
    "PRESETS",
    "AugmentationConfig",
    "ChannelPlan",
    "FeatureCacheConfig",
    "InferenceConfig",
    "LossConfig",
    "NetworkConfig",
    "Plan",
    "RunConfig",
    "SplitConfig",
    "TrainingConfig",
    "auto",
    "changed",
    "paper",
    "parse",
    "read_recipe",
    "read_yaml",
    "scratch",
    "with_settings",
]
