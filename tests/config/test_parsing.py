"""A person sees every mistake at once, each in one line with file, key and what would be right."""

from pathlib import Path

import pytest

from sam2_3dmed.config import Plan, RunConfig, parse
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.files.structured import read_yaml

CHANNEL = {"name": "CT", "normalisation": "fixed", "low": 0, "high": 1}


def lines(data, model=RunConfig, source="recipe.yaml"):
    with pytest.raises(ConfigError) as caught:
        parse(data, model, source)
    return str(caught.value).split("\n")


def test_what_is_right_becomes_the_model():
    config = parse({"training": {"epochs": 3}}, RunConfig, "recipe.yaml")
    assert config == RunConfig(training=RunConfig().training.model_copy(update={"epochs": 3}))


def test_all_mistakes_at_once_a_line_each():
    found = lines(
        {
            "model": {"size": "tinny", "image_size": 100},
            "traning": {},
            "loss": {"boundary_normalize": 1},
            "training": {"epochs": 0, "patience": "none"},
        }
    )
    assert len(found) == 6
    assert all(line.startswith("recipe.yaml: ") for line in found)
    text = "\n".join(found)
    for part in (
        "model.size: Input should be 'auto', 'nano', 'tiny', 'small', 'base_plus' or 'large' (got 'tinny')",
        "model.image_size: Input should be a multiple of 32 (got 100)",
        "no such key 'traning'; did you mean 'training'?",
        "no such key 'loss.boundary_normalize'; did you mean 'boundary_normalise'?",
        "training.epochs: Input should be greater than or equal to 1 (got 0)",
        "training.patience: Input should be a valid integer",
    ):
        assert part in text


def test_a_key_like_no_other_gets_the_list_of_what_is_known():
    (line,) = lines({"split": {"xyzzy": 1}})
    assert line.endswith(
        "no such key 'split.xyzzy'; known are seed, test_fraction, validation_fraction, training_cases"
    )


def test_an_unknown_key_of_a_channel_gets_the_nearest_key_of_a_channel():
    channels = [CHANNEL, {**CHANNEL, "normalization": "fixed"}]
    (line,) = lines({"dataset": "a", "channels": channels, "labels": {1: "b"}}, Plan, "plan.yaml")
    assert line == "plan.yaml: no such key 'channels.1.normalization'; did you mean 'normalisation'?"


def test_a_mistake_in_a_channel_is_not_also_a_list_that_is_too_short():
    (line,) = lines({"dataset": "a", "channels": [{**CHANNEL, "low": 1}], "labels": {1: "b"}}, Plan, "plan.yaml")
    assert line.startswith("plan.yaml: channels.0: low (1) must be below high (1)")


def test_a_missing_key_is_named_without_the_rest_of_the_file():
    assert lines({"dataset": "a", "channels": [CHANNEL]}, Plan, "plan.yaml") == ["plan.yaml: labels: Field required"]


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_no_mapping_at_all(data):
    (line,) = lines(data)
    assert line == f"recipe.yaml: expected keys and values, found {type(data).__name__}"


def test_a_key_that_is_no_text():
    (line,) = lines({1: 2})
    assert line.startswith("recipe.yaml: 1: ")


def test_a_long_value_does_not_flood_the_line():
    (line,) = lines({"training": {"epochs": "x" * 5000}})
    assert len(line) <= 300


class TestReadYaml:
    def test_contents(self, tmp_path: Path):
        file = tmp_path / "a.yaml"
        file.write_text("training: {epochs: 3}\n")
        assert read_yaml(file) == {"training": {"epochs": 3}}

    @pytest.mark.parametrize("content", [b"a: [1", b"a: b: c", b"\t- x", b"!!python/object:os.system {}"])
    def test_no_yaml_is_one_line_that_names_the_file(self, tmp_path: Path, content):
        file = tmp_path / "a.yaml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.yaml: not valid YAML: ") as caught:
            read_yaml(file)
        assert "\n" not in str(caught.value)

    def test_unreadable(self, tmp_path: Path):
        for file in (tmp_path / "gone.yaml", tmp_path):
            with pytest.raises(ConfigError, match="cannot be read") as caught:
                read_yaml(file)
            assert str(caught.value).startswith(f"{file}: ")

    def test_no_text(self, tmp_path: Path):
        (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read"):
            read_yaml(tmp_path / "a.yaml")
