"""Every model checks what it is given, and none can be changed afterwards."""

import pytest
from pydantic import ValidationError

from sam2_3dmed.config import AugmentationConfig, ChannelPlan, Plan, RunConfig

CT = {"name": "CT", "normalisation": "fixed", "low": -100.0, "high": 240.0}
MR = {"name": "MRI", "normalisation": "percentiles", "low": 0.5, "high": 99.5}


def plan(**changed):
    return Plan.model_validate({"dataset": "Spleen", "channels": [CT], "labels": {1: "spleen"}, **changed})


def test_defaults_are_the_papers():
    config = RunConfig()
    assert (config.training.epochs, config.training.batch_size, config.training.learning_rate) == (500, 4, 5e-5)
    assert config.loss.terms == {"bce": 1, "relative_position": 0.01, "boundary": 0.1}
    assert (config.augmentation.rotation_degrees, config.augmentation.shear_degrees) == (25, 20)
    assert (config.model.srpp, config.model.boundary, config.model.boundary_fusion) == (True, True, True)
    assert (config.model.srpp_memory, config.model.fusion_residual) == (False, False)


@pytest.mark.parametrize("section", list(RunConfig.model_fields))
def test_nothing_can_be_assigned(section):
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, getattr(config, section))
    part = getattr(config, section)
    for name in type(part).model_fields if part is not None else ():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "size", "medium"),
        ("model", "image_size", 48),
        ("model", "image_size", 130),
        ("model", "image_size", 2048),
        ("model", "memory_pooling", 3),
        ("loss", "terms", {}),
        ("loss", "terms", {"relative_position": -0.1}),
        ("loss", "terms", {"boundary": float("nan")}),
        ("augmentation", "mosaic", 1.5),
        ("augmentation", "rotation_degrees", -1),
        ("augmentation", "shear_degrees", 90),
        ("augmentation", "scale", 1),
        ("augmentation", "blur_sigma", (0.0, 1.0)),
        ("augmentation", "blur_sigma", (2.0, 1.0)),
        ("augmentation", "blur_sigma", (1.0,)),
        ("training", "epochs", 0),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", float("inf")),
        ("training", "warmup_fraction", 2),
        ("training", "encoder", "adapters"),
        ("training", "lora_rank", 0),
        ("training", "ema_decay", 1),
        ("training", "precision", "fp16"),
        ("training", "seed", -1),
        ("split", "seed", -1),
        ("split", "test_fraction", 0),
        ("split", "validation_fraction", 1),
        ("inference", "overlap", 1),
        ("inference", "direction", "sideways"),
        ("inference", "batch_size", 0),
        ("inference", "mode", "memory"),
    ],
)
def test_a_value_out_of_range_is_refused_at_its_place(section, key, value):
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({section: {key: value}})
    errors = caught.value.errors()
    assert len(errors) == 1
    assert errors[0]["loc"][:2] == (section, key)


@pytest.mark.parametrize("value", [0, 65])
def test_slab_slices_has_bounds(value):
    with pytest.raises(ValidationError, match="slab_slices"):
        RunConfig(slab_slices=value)


def test_equal_bounds_of_blur_are_a_fixed_blur():
    assert AugmentationConfig(blur_sigma=(1.0, 1.0)).blur_sigma == (1.0, 1.0)


class TestPlan:
    def test_what_follows_from_the_labels(self):
        mine = plan(labels={3: "pancreas", 300: "tumour"})
        assert (mine.num_classes, mine.label_values) == (2, (3, 300))

    def test_keys_of_labels_may_be_text_as_yaml_and_json_have_them(self):
        assert plan(labels={"1": "liver", "2": "tumour"}).label_values == (1, 2)

    def test_preprocessing_is_the_plans(self):
        preprocessing = plan(channels=[MR, CT], slicing_axis="coronal").preprocessing
        assert preprocessing.slicing_axis == "coronal"
        assert [(n.kind, n.low, n.high) for n in preprocessing.normalisation] == [
            ("percentiles", 0.5, 99.5),
            ("fixed", -100, 240),
        ]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"labels": {}}, "labels"),
            ({"labels": {2: "b", 1: "a"}}, "ascending"),
            ({"labels": {0: "background", 1: "a"}}, "between 1 and 65535"),
            ({"labels": {1: "a", 65536: "b"}}, "between 1 and 65535"),
            ({"channels": []}, "channels"),
            ({"channels": [CT] * 4}, "channels"),
            ({"slicing_axis": "oblique"}, "slicing_axis"),
            ({"slab_slices": 0}, "slab_slices"),
            ({"slab_slices": 65}, "slab_slices"),
            ({"nsd_tolerance_mm": 0}, "nsd_tolerance_mm"),
            ({"tolerance": 2}, "tolerance"),
        ],
    )
    def test_a_wrong_plan_is_refused(self, changed, message):
        with pytest.raises(ValidationError, match=message):
            plan(**changed)

    @pytest.mark.parametrize(
        ("channel", "message"),
        [
            ({**CT, "low": 240.0}, r"low \(240\) must be below high \(240\)"),
            ({**MR, "high": 101}, "percentiles lie between 0 and 100"),
            ({**MR, "low": -1}, "percentiles lie between 0 and 100"),
            ({**MR, "normalisation": "zscore"}, "normalisation"),
            ({**CT, "high": float("inf")}, "high"),
        ],
    )
    def test_a_wrong_channel_is_refused(self, channel, message):
        with pytest.raises(ValidationError, match=message):
            ChannelPlan.model_validate(channel)
