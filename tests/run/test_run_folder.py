"""The run folder: saved and loaded strictly, and one line for whatever is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sam2_3dmed.config import ChannelPlan, InferenceConfig, Plan, RunConfig, paper, with_settings
from sam2_3dmed.dicom.codes import Code
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.run_config import CONFIG_FILE
from sam2_3dmed.run.run_folder import (
    MODEL_FILE,
    load_model,
    log_to,
    read_record,
    remember_codes,
    remember_data,
    remembered_codes,
    remembered_data,
    save_model,
)
from sam2_3dmed.run.sam2_model import make_predictor

CHANNEL = ChannelPlan(name="CT", normalisation="fixed", low=-100, high=200)


def plan(num_classes: int = 2) -> Plan:
    return Plan(dataset="Test", channels=(CHANNEL,), labels={k: f"organ {k}" for k in range(1, num_classes + 1)})


def recipe(*settings: str) -> RunConfig:
    return with_settings(paper(), ["model.size=nano", "model.image_size=64", *settings])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "one"
    save_model(*make_model(recipe("inference.direction=backward", "slab_slices=4"), plan(), "none"), folder)
    return folder


def copy(run: Path, to: Path) -> Path:
    to.mkdir()
    for name in (CONFIG_FILE, MODEL_FILE):
        (to / name).write_bytes((run / name).read_bytes())
    return to


def test_what_was_saved_is_loaded(run: Path) -> None:
    predictor = load_model(run)
    torch.manual_seed(0)
    original, _ = make_model(recipe(), plan(), "none")
    for (name, a), b in zip(original.state_dict().items(), predictor.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (predictor.config.direction, predictor.slab_slices) == ("backward", 4)
    assert predictor.labels == {1: "organ 1", 2: "organ 2"}
    assert not predictor.network.training
    assert load_model(run, direction="forward").config.direction == "forward"


def test_settings_replace_those_of_the_run(run: Path) -> None:
    settings = {"batch_size": 3, "precision": "bf16", "fill_holes": ("organ 2",), "min_volume_ml": 0.5}
    assert load_model(run, **settings).config == InferenceConfig(direction="backward", **settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"keep_biggest": True}, "inference: no such key 'keep_biggest'"),
        ({"fill_holes": ("liver",)}, "fill_holes: no class 'liver'; there are organ 1, organ 2"),
        ({"min_volume_ml": -1}, "inference: min_volume_ml"),
    ],
)
def test_settings_that_are_not_valid(run: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_model(run, **settings)


def test_post_processing_of_the_recipe(run: Path) -> None:
    changed = recipe("inference.largest_component=[organ 1]", "inference.min_volume_ml={organ 2: 0.3}")
    network, record = make_model(changed, plan(), "none")
    expected = InferenceConfig(largest_component=("organ 1",), min_volume_ml={"organ 2": 0.3})
    assert make_predictor(network, record).config == expected


def test_the_record_survives_its_file(run: Path) -> None:
    record = read_record(run)
    assert record.plan == plan()
    complete = ["model.channels=64", "model.pointer_time=true", "model.no_memory_token=true", "training.encoder=train"]
    assert record.recipe == recipe("inference.direction=backward", "slab_slices=4", *complete)
    assert record.recipe.training.encoder == "train"
    assert set(record.versions) == {"sam2-3dmed", "torch", "transformers"}


def test_where_the_data_set_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remembered_data(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    remember_data(tmp_path, Path("data"))
    assert remembered_data(tmp_path) == tmp_path.resolve() / "data"
    lines = {"{": "broken JSON", "[]": "an object is expected", '{"folder": 3}': r'expected \{"folder": PATH\}'}
    for text, line in lines.items():
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(DataError, match=rf"data\.json: {line}"):
            remembered_data(tmp_path)


def test_the_codes_of_the_classes(tmp_path: Path) -> None:
    assert remembered_codes(tmp_path) == {}
    codes = {"bright": Code("78961009", "SCT", "Spleen")}
    remember_codes(tmp_path, codes)
    assert remembered_codes(tmp_path) == codes
    (tmp_path / "codes.json").write_text('{"codes": {"bright": "78961009"}}')
    with pytest.raises(DataError, match=r'codes\.json: "codes" must be like'):
        remembered_codes(tmp_path)
    remember_codes(tmp_path, {})  # another attempt, with a data set that gives none
    assert not any(tmp_path.iterdir())


def test_a_device_that_is_not_here(run: Path) -> None:
    with pytest.raises(ConfigError, match="device quantum: "):
        load_model(run, device="quantum")


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (lambda f: (f / CONFIG_FILE).unlink(), WeightsError, r"not a run folder \(it has no config\.yaml\)"),
        (
            lambda f: (f / MODEL_FILE).unlink(),
            WeightsError,
            r"not finished \(it has no model\.safetensors\); train --res",
        ),
        (
            lambda f: (f / MODEL_FILE).write_bytes(b"\0" * 50),
            WeightsError,
            r"model\.safetensors: not a readable safetensors file",
        ),
        (lambda f: (f / CONFIG_FILE).write_text("kind: ["), ConfigError, r"config\.yaml: not valid YAML"),
        (
            lambda f: (f / CONFIG_FILE).write_text("format: 2\nsystem: sam2_3dmed"),
            ConfigError,
            r"config\.yaml: plan: Field required",
        ),
        (
            lambda f: (f / CONFIG_FILE).write_text(
                (f / CONFIG_FILE).read_text().replace("system: sam2", "system: sam3")
            ),
            ConfigError,
            r"config\.yaml: no system 'sam3_3dmed'; did you mean 'sam2_3dmed'",
        ),
        (
            lambda f: (f / CONFIG_FILE).write_text((f / CONFIG_FILE).read_text().replace("format: 2", "kind: patches")),
            WeightsError,
            r"broken: another version wrote this run \(config\.yaml has no format: 2\); train it again, or use",
        ),
        (
            lambda f: (f / CONFIG_FILE).write_text((f / CONFIG_FILE).read_text().replace("srpp: true", "srpp: false")),
            WeightsError,
            r"not the weights of this model: Unexpected key",
        ),
    ],
    ids=[
        "no record",
        "no model",
        "broken model",
        "broken record",
        "half a record",
        "unknown system",
        "other version",
        "other model",
    ],
)
def test_broken_run_folders(run: Path, tmp_path: Path, change, error, line) -> None:
    folder = copy(run, tmp_path / "broken")
    change(folder)
    with pytest.raises(error, match=line):
        load_model(folder)


def test_a_model_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    network, record = make_model(recipe(), plan(), "none")
    with pytest.raises(DataError, match=r"config\.yaml: cannot be written"):
        save_model(network, record, tmp_path / "file" / "run")


def test_log_to(tmp_path: Path) -> None:
    import logging

    logger = logging.getLogger("sam2_3dmed.something")
    logger.setLevel(logging.INFO)
    with log_to(tmp_path / "log.txt"):
        logger.info("inside")
    logger.info("outside")
    assert (tmp_path / "log.txt").read_text().endswith(" inside\n")
