"""What `auto` stands for among the weights, the network that comes with the package, and the recipe that fits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed import PredictRequest, TrainRequest, load_model, predict, train
from sam2_3dmed.config import few_labels, read_recipe, scratch, with_settings
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.model.hub import DEFAULT_HUB_ID
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.first_weights import find_weights, recipe_for_weights, run_of_weights
from sam2_3dmed.run.pretrain import PLAN
from sam2_3dmed.run.run_config import NANO, find_run
from sam2_3dmed.run.run_folder import read_weights, save_model
from sam2_3dmed.run.systems import OURS, find_system
from sam2_3dmed.volume.label import read_label

MOST_BYTES = 8_000_000
FEW_STEPS = ["training.epochs=1", "training.samples_per_epoch=2", "training.validate_every=1", "slab_slices=4"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no route to the host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)


def test_auto_is_sam2_where_it_is_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: str(tmp_path / names[-1]))
    assert find_weights("auto") == DEFAULT_HUB_ID


@pytest.mark.usefixtures("offline")
def test_auto_without_a_network_is_from_scratch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "sam2_3dmed"):
        assert find_weights("auto") == "none"
    assert "no route to the host" in caplog.text
    assert "training starts from scratch" in caplog.text
    assert find_weights("none") == "none"
    assert find_weights("runs/mine") == "runs/mine"


def test_nano_comes_with_the_package() -> None:
    folder = run_of_weights(NANO)
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    assert (folder / "README.md").is_file()
    network = load_model(NANO, device="cpu").network
    assert network.promptable
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_the_record_of_nano_holds_no_path() -> None:
    text = (find_run(NANO) / "config.yaml").read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if "/" in line]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("weights", ["auto", "nano"])
def test_a_run_starts_where_sam2_is_not_to_be_had(weights: str, blobs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run = train(TrainRequest(blobs, tmp_path / "run", settings=FEW_STEPS, weights=weights, cache=cache))
    assert run is not None
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert f"weights: {'none' if weights == 'auto' else 'nano'}\n" in text
    assert "memory: none" in text
    assert "elastic: 0.06" in text  # the recipe few_labels
    assert "promptable: false" in text
    resumed = train(TrainRequest(blobs, run, resume=True))
    assert resumed == run


def test_its_encoder_is_in_the_network_that_starts_from_it() -> None:
    network, record = make_model(read_recipe("scratch"), PLAN, NANO)
    before = read_weights(find_run(NANO) / "model.safetensors")
    after = network.state_dict()
    same = {name for name in after if name in before and torch.equal(after[name], before[name])}
    assert record.weights == NANO
    assert record.recipe.training.encoder == "train"
    assert {name for name in after if name.startswith("encoder.")} <= same
    assert not [name for name in same if "transformer" in name and after[name].ndim > 1]  # the decoder starts fresh
    assert not any("prompt_maps" in name for name in after)


def test_other_sizes_are_refused_by_name() -> None:
    recipe = with_settings(read_recipe("scratch"), ["model.size=tiny"])
    with pytest.raises(WeightsError, match=r"^nano: these weights need model\.size=nano, not tiny"):
        make_model(recipe, PLAN, NANO)


def test_recipes_go_with_weights(tmp_path: Path) -> None:
    ours = find_system(OURS)
    assert recipe_for_weights(ours, "none") == scratch()
    assert recipe_for_weights(ours, "none", cases=63) == few_labels()
    assert recipe_for_weights(ours, "none", cases=64) == scratch()
    assert recipe_for_weights(ours, "none", "scratch", cases=8) == scratch()
    few = ["split.training_cases=8"]
    assert recipe_for_weights(ours, "none", "auto+ema", few, 200) == with_settings(read_recipe("few_labels+ema"), few)
    assert recipe_for_weights(ours, NANO) == few_labels()
    assert recipe_for_weights(ours, NANO, "auto+dice_bce") == read_recipe("few_labels+dice_bce")
    assert recipe_for_weights(ours, NANO, "paper") == read_recipe("paper")
    assert recipe_for_weights(ours, "facebook/sam2.1-hiera-tiny") == read_recipe("paper")
    assert recipe_for_weights(ours, NANO, settings=["training.epochs=3"]).training.epochs == 3
    without = scratch()
    save_model(*make_model(without, PLAN, "none"), tmp_path / "run")
    assert recipe_for_weights(ours, str(tmp_path / "run")) == without
    assert recipe_for_weights(find_system("unet"), "none") == find_system("unet").recipe()


def test_settings_are_for_a_recipe_that_is_named(blobs: Path, tmp_path: Path) -> None:
    request = TrainRequest(blobs, tmp_path / "run", recipe=scratch(), settings=FEW_STEPS, weights="none")
    with pytest.raises(ConfigError, match="settings change a recipe that is named"):
        train(request)


def test_nano_segments_from_a_box_on_one_slice(blobs: Path, tmp_path: Path) -> None:
    """The box of a bright blob: the mask is about that blob, and messages call the network by its name."""
    scan, drawn = blobs / "imagesTr" / "blob_00.nii.gz", tmp_path / "drawn"
    label = read_label(blobs / "labelsTr" / "blob_00.nii.gz")
    blob = label.array == 1
    best = int(blob.sum(axis=(0, 1)).argmax())
    one = np.zeros(blob.shape, dtype=np.uint8)
    one[..., best] = blob[..., best]
    drawn.mkdir()
    label.with_array(one).write(drawn / "blob_00.nii.gz")
    (outcome,) = predict(PredictRequest(NANO, [scan], out=tmp_path / "masks", boxes_from=drawn))
    assert outcome.error is None
    assert dice(read_label(tmp_path / "masks" / "blob_00.nii.gz").array == 1, blob) > 0.5
    with pytest.raises(ConfigError, match=r"^nano takes boxes"):
        predict(PredictRequest(NANO, [scan], out=tmp_path / "masks"))
