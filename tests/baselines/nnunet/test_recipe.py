"""nnU-Net's recipe: its own defaults, and what can be said."""

import pytest

from sam2_3dmed.baselines.nnunet.system import NNUNET
from sam2_3dmed.baselines.recipe import NnunetConfig, NnunetRecord, NnunetSpec
from sam2_3dmed.errors import ConfigError


def test_the_defaults_are_nnunets():
    config = NNUNET.recipe()
    assert (config.training.epochs, config.training.steps_per_epoch, config.training.minutes) == (1000, 250, None)
    assert (config.model.planner, config.model.configuration) == ("ExperimentPlanner", "3d_fullres")
    assert config.inference.flips


def test_settings():
    config = NNUNET.recipe(
        settings=["model.configuration=2d", "training.minutes=5", "inference.largest_component=true"]
    )
    assert config.model.configuration == "2d"
    assert config.training.minutes == 5
    assert config.inference.largest_component is True
    assert NnunetConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.learning_rate=0.1", "no such key 'training.learning_rate'"),
        ("model.configuration=3d_cascade_fullres", "model.configuration: Input should be '2d', '3d_fullres'"),
        ("training.minutes=0", "training.minutes: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_said(setting, message):
    with pytest.raises(ConfigError, match=message):
        NNUNET.recipe(settings=[setting])


def test_a_model_in_words(balls):
    plans = {"configurations": {"2d": {"patch_size": [56, 40]}}}
    labels = {"background": 0, **{name: number for number, name in enumerate(balls.plan.labels.values(), start=1)}}
    spec = NnunetSpec(configuration="2d", plans=plans, dataset={"labels": labels})
    given = {"plan": balls.plan, "recipe": NNUNET.recipe(), "weights": "none", "versions": {}}
    assert NnunetRecord(model=spec, **given).about == "nnU-Net, 2d, patches of 56 x 40 voxels"
    more = spec.model_copy(update={"dataset": {"labels": labels | {"another": len(labels)}}})
    with pytest.raises(ValueError, match=f"the plan has {len(labels) - 1} classes, and the network {len(labels)}"):
        NnunetRecord(model=more, **given)
    for broken in ({}, {"configurations": {"2d": {}}}, {"configurations": {"2d": {"patch_size": 5}}}):
        with pytest.raises(ValueError, match="plans have no 2d with a patch_size"):
            NnunetSpec(configuration="2d", plans=broken, dataset={"labels": labels})
