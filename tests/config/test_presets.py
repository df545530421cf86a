"""Presets and ablations by name, recipes from files, and single settings from the command line."""

from itertools import product
from pathlib import Path

import pytest

from sam2_3dmed.config import (
    ABLATIONS,
    ADDITIONS,
    BASELINES,
    PRESETS,
    RunConfig,
    auto,
    few_labels,
    paper,
    read_recipe,
    scratch,
    with_settings,
)
from sam2_3dmed.errors import ConfigError

TERMS = ("bce", "dice", "focal", "focal_tversky", "relative_position", "boundary")


def options(config: RunConfig) -> dict:
    """Every option by its dotted name."""
    found = {
        f"{section}.{key}": value
        for section, part in config.model_dump().items()
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }
    terms = found.pop("loss.terms")
    return found | {f"loss.terms.{name}": terms.get(name) for name in TERMS}


def changed(config: RunConfig, base: RunConfig) -> dict:
    before = options(base)
    return {key: value for key, value in options(config).items() if value != before[key]}


@pytest.fixture
def recipe(tmp_path: Path):
    def write(text: str) -> str:
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return str(file)

    return write


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_found_by_name(name):
    config = read_recipe(name)
    assert config == PRESETS[name](False)
    assert RunConfig.model_validate(config.model_dump()) == config


def test_paper_is_all_defaults():
    assert paper() == RunConfig()


@pytest.mark.parametrize(
    ("ablation", "key", "value"),
    [
        ("without_pretraining", "training.encoder", "train"),
        ("without_srpp", "model.srpp", False),
        ("without_shared_context", "model.share_context", False),
        ("with_srpp_memory", "model.srpp_memory", True),
        ("without_boundary", "model.boundary", False),
        ("without_boundary_fusion", "model.boundary_fusion", False),
        ("slices_3", "slab_slices.", 3),
        ("slices_6", "slab_slices.", 6),
        ("slices_12", "slab_slices.", 12),
        ("srpp_weight_0.03", "loss.terms.relative_position", 0.03),
        ("srpp_weight_0.05", "loss.terms.relative_position", 0.05),
        ("boundary_weight_0.3", "loss.terms.boundary", 0.3),
        ("boundary_weight_0.5", "loss.terms.boundary", 0.5),
        ("forward_only", "inference.direction", "forward"),
        ("backward_only", "inference.direction", "backward"),
    ],
)
@pytest.mark.parametrize("base", PRESETS)
def test_an_ablation_changes_one_option(base, ablation, key, value):
    config = read_recipe(f"{base}+{ablation}")
    before = PRESETS[base](False)
    assert changed(config, before) == ({} if options(before)[key] == value else {key: value})
    assert RunConfig.model_validate(config.model_dump()) == config


def test_the_table_above_names_every_ablation():
    marks = test_an_ablation_changes_one_option.pytestmark
    names = {row[0] for mark in marks if "ablation" in mark.args[0] for row in mark.args[1]}
    assert names == set(ABLATIONS)


SAM2 = {
    "model.srpp": False,
    "model.boundary": False,
    "augmentation.reverse": 0.0,
    "inference.direction": "forward",
}
MEDSAM2 = {**SAM2, "model.memory": "self_sorting", "inference.mode": "stream"}


def test_ablations_add_up_in_any_order():
    for first, second in product(ABLATIONS, ABLATIONS):
        expected = {
            **changed(read_recipe(f"paper+{first}"), paper()),
            **changed(read_recipe(f"paper+{second}"), paper()),
        }
        assert changed(read_recipe(f"paper+{first}+{second}"), paper()) == expected


@pytest.mark.parametrize("base", PRESETS)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sam2", SAM2),
        ("medsam2", MEDSAM2),
        ("medsam2_boxes", {**MEDSAM2, "model.box_every": 2}),
        ("lora", {"training.encoder": "lora", "training.encoder_rate": 5.0}),
        (
            "last_stage",
            {"training.encoder": "last_stage", "training.encoder_rate": 0.6, "training.layer_decay": 0.9},
        ),
        ("slice_mixing", {"model.slice_mixing": True, "inference.mode": "stream", "inference.direction": "forward"}),
        ("pooled_memory", {"model.memory_pooling": 2}),
        ("without_memory", {"model.memory": "none"}),
        ("ema", {"training.ema_decay": 0.999}),
    ],
)
def test_an_addition_or_opponent_changes_what_it_says(base, name, changes):
    config = read_recipe(f"{base}+{name}")
    before = PRESETS[base](False)
    assert changed(config, before) == {key: value for key, value in changes.items() if options(before)[key] != value}
    assert RunConfig.model_validate(config.model_dump()) == config


LOSSES = {
    "bce": {"bce": 1},
    "dice_bce": {"dice": 1, "bce": 1},
    "focal_dice": {"focal": 20, "dice": 1},
    "focal_tversky": {"focal_tversky": 1},
}


@pytest.mark.parametrize("name", LOSSES)
def test_another_segmentation_loss_leaves_the_other_terms(name):
    terms = read_recipe(f"scratch+srpp_weight_0.05+{name}").loss.terms
    assert terms == {**LOSSES[name], "relative_position": 0.05, "boundary": 0.1}


def test_the_table_above_names_every_addition_and_opponent():
    marks = test_an_addition_or_opponent_changes_what_it_says.pytestmark
    names = {row[0] for mark in marks if "name" in mark.args[0] for row in mark.args[1]}
    assert names | LOSSES.keys() == {*ADDITIONS, *BASELINES}
    assert not names & set(ABLATIONS)


def test_additions_go_with_ablations_and_each_other_but_not_two_ways_to_adapt():
    config = read_recipe("paper+lora+without_srpp+ema")
    assert (config.training.encoder, config.model.srpp, config.training.ema_decay) == ("lora", False, 0.999)
    for both in ("lora+last_stage", "last_stage+lora"):
        with pytest.raises(ConfigError, match="^{} and {} exclude each other$".format(*both.split("+"))):
            read_recipe(f"paper+{both}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papr", "no preset 'papr'; did you mean 'paper'?"),
        ("zzz", "no preset 'zzz'; known are auto, paper, scratch, paper_scratch"),
        ("paper+without_srp", "no ablation or addition 'without_srp'; did you mean 'without_srpp'?"),
        ("paper+", "no ablation or addition ''; known are without_pretraining, "),
        ("without_srpp", "no preset 'without_srpp'; known are auto, paper, scratch, paper_scratch"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, message):
    with pytest.raises(ConfigError) as caught:
        read_recipe(name)
    assert str(caught.value).startswith(message)


class TestFiles:
    def test_starts_from_auto(self, recipe):
        config = read_recipe(recipe("training: {epochs: 7}\nslab_slices: 4\n"))
        assert changed(config, auto(from_scratch=False)) == {"training.epochs": 7, "slab_slices.": 4}

    def test_starts_from_the_preset_it_names(self, recipe):
        config = read_recipe(recipe("preset: paper+without_srpp\nloss:\n  boundary_normalise: sum\n"))
        assert changed(config, paper()) == {"model.srpp": False, "loss.boundary_normalise": "sum"}

    def test_an_empty_file_is_auto(self, recipe):
        assert read_recipe(recipe("# nothing yet\n")) == auto(from_scratch=False)

    def test_yml_will_do(self, tmp_path: Path):
        (tmp_path / "a.yml").write_text("preset: paper")
        assert read_recipe(str(tmp_path / "a.yml")) == paper()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- a\n- b\n", "expected keys and values, found list"),
            ("trainig: {epochs: 7}\n", "no such key 'trainig'; did you mean 'training'?"),
            ("training: {epoch: 7}\n", "no such key 'training.epoch'; did you mean 'epochs'?"),
            ("training:\n", "training: Input should be a valid dictionary"),
            ("training: [\n", "not valid YAML: "),
            ("preset: papr\n", "no preset 'papr'; did you mean 'paper'?"),
            ("preset: mine.yaml\n", "no preset 'mine.yaml'; known are auto, paper, scratch, paper_scratch"),
        ],
    )
    def test_a_mistake_is_named_with_the_file(self, recipe, text, message):
        file = recipe(text)
        with pytest.raises(ConfigError) as caught:
            read_recipe(file)
        assert str(caught.value).startswith(f"{file}: {message}")

    def test_all_mistakes_at_once(self, recipe):
        with pytest.raises(ConfigError) as caught:
            read_recipe(recipe("training: {epochs: 0, batch_size: 0}\nmodl: {}\n"))
        assert len(str(caught.value).split("\n")) == 3

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
            read_recipe(str(tmp_path / "gone.yaml"))


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "key", "value"),
        [
            ("training.epochs=50", "training.epochs", 50),
            ("training.learning_rate=2e-4", "training.learning_rate", 2e-4),
            ("training.minutes=1.5", "training.minutes", 1.5),
            ("training.clip_gradient_norm=null", "training.clip_gradient_norm", None),
            ("model.srpp=false", "model.srpp", False),
            ("model.size=tiny", "model.size", "tiny"),
            ("augmentation.blur_sigma=[0.5, 1]", "augmentation.blur_sigma", (0.5, 1.0)),
            ("slab_slices=8", "slab_slices.", 8),
        ],
    )
    def test_changes_that_option_alone(self, setting, key, value):
        base = paper()
        assert changed(with_settings(base, [setting]), base) == {key: value}
        assert base == paper()

    def test_several_the_last_one_wins(self):
        config = with_settings(paper(), ["training.epochs=2", "loss.terms.dice=1", "training.epochs=3"])
        assert changed(config, paper()) == {"training.epochs": 3, "loss.terms.dice": 1}

    def test_none_changes_nothing(self):
        assert with_settings(scratch(), []) == scratch()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("training.epochs", "--set training.epochs: expected section.key=value, such as training.epochs=50"),
            ("=5", "--set =5: expected section.key=value"),
            ("training.epochs=[", "--set training.epochs=[: not valid YAML: "),
            ("training.epochs.first=5", "--set training.epochs.first=5: epochs has no keys below it"),
            ("slab_slices.a=5", "--set slab_slices.a=5: slab_slices has no keys below it"),
            ("trainig.epochs=5", "--set: no such key 'trainig'; did you mean 'training'?"),
            ("training.epoch=5", "--set: no such key 'training.epoch'; did you mean 'epochs'?"),
            ("training.epochs=0", "--set: training.epochs: Input should be greater than or equal to 1 (got 0)"),
            ("training.epochs=", "--set: training.epochs: Input should be a valid integer (got None)"),
            ("training=5", "--set: training: Input should be a valid dictionary"),
        ],
    )
    def test_a_mistake_is_one_line(self, setting, message):
        with pytest.raises(ConfigError) as caught:
            with_settings(scratch(), [setting])
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)

    def test_all_wrong_values_at_once(self):
        with pytest.raises(ConfigError) as caught:
            with_settings(scratch(), ["training.epochs=0", "model.sise=tiny"])
        assert len(str(caught.value).split("\n")) == 2


def test_auto_is_scratch_without_pretrained_weights_and_paper_with_them():
    assert read_recipe("auto", from_scratch=True) == scratch()
    assert read_recipe("auto") == paper()
    assert read_recipe("paper", from_scratch=True) == paper()


def test_few_labels_is_scratch_with_more_augmentation_and_an_average():
    assert changed(few_labels(), scratch()) == {
        "augmentation.scale": 0.2,
        "augmentation.elastic": 0.06,
        "augmentation.intensity": 0.3,
        "training.ema_decay": 0.99,
    }
