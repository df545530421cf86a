"""Where training starts: from scratch, or strictly from a run of ours (SAM2's weights: model/test_weights.py)."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sam2_3dmed.config import ChannelPlan, Plan, RunConfig, paper, with_settings
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.run_config import Sam2Record
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, read_weights, save_model

CHANNEL = ChannelPlan(name="CT", normalisation="fixed", low=-100, high=200)


def plan(num_classes: int = 2) -> Plan:
    return Plan(dataset="Test", channels=(CHANNEL,), labels={k: f"organ {k}" for k in range(1, num_classes + 1)})


def recipe(*settings: str) -> RunConfig:
    return with_settings(paper(), ["model.size=nano", "model.image_size=64", *settings])


def of_network(record: Sam2Record, **changes: object) -> Sam2Record:
    """The record with another network config."""
    model = record.recipe.model.model_copy(update=changes)
    return record.model_copy(update={"recipe": record.recipe.model_copy(update={"model": model})})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "one"
    save_model(*make_model(recipe(), plan(), "none"), folder)
    return folder


def test_from_scratch_the_encoder_trains_unless_told(run: Path) -> None:
    network, record = make_model(recipe("training.encoder=frozen"), plan(), "none")
    assert record.recipe.training.encoder == "frozen"
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_a_run_starts_from_a_run(run: Path) -> None:
    torch.manual_seed(1)
    network, record = make_model(with_settings(paper(), []), plan(), str(run))
    assert (record.recipe.model.size, record.recipe.model.image_size) == ("nano", 64)
    assert torch.equal(
        network.segmentation.mask_decoder.class_hypernetworks.weights[0],
        load_model(run).network.segmentation.mask_decoder.class_hypernetworks.weights[0],
    )


def test_a_run_with_another_number_of_classes_gives_all_but_the_classes(run: Path) -> None:
    network, record = make_model(recipe(), plan(3), str(run))
    old = load_model(run).network.state_dict()
    assert record.plan.num_classes == 3
    kept = {name: tensor for name, tensor in network.state_dict().items() if "class_" not in name}
    assert len(kept) > 100
    assert all(torch.equal(tensor, old[name]) for name, tensor in kept.items())


def test_a_run_from_sam_2_0_stays_one(tmp_path: Path) -> None:
    """Its pointers carry no distance; a run that starts from it has none either."""
    _, record = make_model(recipe(), plan(), "none")
    old = of_network(record, pointer_time=False)
    save_model(build_network(old.recipe.model, old.plan.num_classes), old, tmp_path / "old")
    _, record = make_model(recipe(), plan(), str(tmp_path / "old"))
    assert not record.recipe.model.pointer_time


def test_only_networks_from_scratch_read_a_token_where_there_is_no_memory(tmp_path: Path) -> None:
    """A run that starts from another has what its weights have."""
    _, record = make_model(recipe(), plan(), "none")
    assert record.recipe.model.no_memory_token
    for token in (True, False):
        old = of_network(record, no_memory_token=token)
        save_model(build_network(old.recipe.model, old.plan.num_classes), old, tmp_path / str(token))
        _, again = make_model(recipe(), plan(), str(tmp_path / str(token)))
        assert again.recipe.model.no_memory_token == token


def test_from_scratch_the_width_is_the_recipes(tmp_path: Path) -> None:
    network, record = make_model(recipe("model.channels=128"), plan(), "none")
    assert (network.segmentation.channels, record.recipe.model.channels) == (128, 128)
    assert network.srpp.to_context.out_channels == 128
    save_model(network, record, tmp_path)
    assert load_model(tmp_path).network.segmentation.channels == 128
    started, again = make_model(recipe(), plan(), str(tmp_path))  # a run that starts from it has its width
    assert (started.segmentation.channels, again.recipe.model.channels) == (128, 128)
    with pytest.raises(WeightsError, match=r"these weights need model\.channels=128, not 64"):
        make_model(recipe("model.channels=64"), plan(), str(tmp_path))


def test_a_run_of_another_size_is_refused(run: Path) -> None:
    with pytest.raises(WeightsError, match=r"these weights need model\.size=nano, not tiny"):
        make_model(recipe("model.size=tiny"), plan(), str(run))


def test_parts_that_a_run_lacks_start_fresh_and_others_are_left_out(run: Path, caplog) -> None:
    with caplog.at_level("INFO", "sam2_3dmed"):
        started, _ = make_model(recipe("model.srpp=false", "model.slice_mixing=true"), plan(), str(run))
    assert "model.srpp=True, model.slice_mixing=False: parts that it lacks start fresh" in caplog.text
    assert started.srpp is None
    assert not started.mixer.conv2.weight.any()
    before = read_weights(run / MODEL_FILE)
    for name, tensor in started.state_dict().items():
        assert "mixer" in name or torch.equal(tensor, before[name])


def test_weights_that_are_not_those_of_their_record_name_the_keys(run: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    weights = read_weights(run / MODEL_FILE)
    name = next(name for name in weights if name.startswith("srpp."))
    save_file({other: tensor for other, tensor in weights.items() if other != name}, broken / MODEL_FILE)
    with pytest.raises(WeightsError, match=rf"not the weights of this model: Missing key.*{name}"):
        make_model(recipe(), plan(), str(broken))
