"""Options as frozen models that are checked where they are made.

A `Plan` has what the data set dictates: axis, intensities, classes, slab. A `RunConfig` has what we choose: model,
loss, training. A preset is a function that makes a `RunConfig`. An ablation changes one thing of a preset, and an
addition goes beyond the paper.
"""

from sam2_3dmed.config.parsing import changed, parse
from sam2_3dmed.config.presets import (
    ABLATIONS,
    ADDITIONS,
    BASELINES,
    PRESETS,
    auto,
    few_labels,
    paper,
    paper_scratch,
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
