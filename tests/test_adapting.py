"""A run that adapts its encoder, from the weights it starts with to the run that starts from it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam2_3dmed.config import RunConfig, read_recipe, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.run.build_model import make_model, remake_model
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, read_record, read_weights
from sam2_3dmed.run.train import TrainRequest
from sam2_3dmed.run.train import train as train_run
from sam2_3dmed.training.checkpoints import BEST_CHECKPOINT, best_state, saved_states, step_of

QUICK = [
    "training.epochs=2",
    "training.single_slice_fraction=0",
    "training.samples_per_epoch=2",
    "training.batch_size=2",
    "training.validate_every=2",
    "training.workers=0",
    "training.learning_rate=1e-3",
    "slab_slices=2",
    "inference.direction=forward",
    "inference.overlap=0",
]
LAST_STAGE = ("blocks.4.", "neck.convs.0.", "neck.convs.1.")


def recipe(name: str) -> RunConfig:
    return with_settings(read_recipe(name), QUICK)


@pytest.fixture(scope="module")
def train(blobs: Path, blob_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that starts from `blob_run`, made once for each recipe."""
    folder, made = tmp_path_factory.mktemp("adapting"), {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = train_run(TrainRequest(blobs, folder / name, recipe=recipe(name), weights=str(blob_run)))
        return made[name]

    return run


def moved(run: Path, start: Path) -> set[str]:
    """Which tensors of the encoder are no longer, to the last bit, what the run started with."""
    new, old = (read_weights(folder / MODEL_FILE) for folder in (run, start))
    assert new.keys() == old.keys()
    prefix = "encoder.vision_encoder."
    return {
        name.removeprefix(prefix) for name in new if name.startswith(prefix) and not torch.equal(new[name], old[name])
    }


def logits(network: SAM2For3dMed) -> Tensor:
    slices = torch.rand(1, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(slices).segmentation


def test_lora_leaves_plain_weights_in_which_only_the_attention_moved(train, blob_run: Path) -> None:
    projections = {f"backbone.blocks.{block}.attn.{part}.weight" for block in range(5) for part in ("qkv", "proj")}
    assert moved(train("paper_scratch+lora+ema"), blob_run) == projections


def test_the_last_stage_moves_and_what_lies_before_it_keeps_its_last_bit(train, blob_run: Path) -> None:
    names = moved(train("paper_scratch+last_stage"), blob_run)
    assert names
    assert all(name.removeprefix("backbone.").startswith(LAST_STAGE) for name in names)


def test_merged_weights_predict_what_the_adapters_did_and_need_no_peft(train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("paper_scratch+lora+ema")
    adapted = remake_model(read_record(run))
    best = best_state(run / "checkpoints")["state_dict"]
    adapted.load_state_dict({name.removeprefix("network."): tensor for name, tensor in best.items()})
    expected = logits(adapted)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails now
    merged = load_model(run).network
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["paper_scratch+lora+ema", "paper_scratch+last_stage"])
def test_a_resumed_run_equals_an_uninterrupted_one(train, blobs: Path, tmp_path: Path, name: str) -> None:
    straight = train(name)
    cut = Path(shutil.copytree(straight, tmp_path / "cut"))
    last, before = saved_states(cut / "checkpoints")
    for file in (cut / MODEL_FILE, last, cut / "checkpoints" / BEST_CHECKPOINT):
        file.unlink()
    assert (step_of(before), step_of(last)) == (1, 2)
    train_run(TrainRequest(blobs, cut, resume=True))
    resumed, expected = (read_weights(folder / MODEL_FILE) for folder in (cut, straight))
    assert all(torch.equal(resumed[tensor], expected[tensor]) for tensor in expected)


@pytest.mark.parametrize("how", ["frozen", "lora", "last_stage"])
def test_a_run_starts_from_one_that_adapted_its_encoder(train, how: str) -> None:
    run = train("paper_scratch+lora+ema")
    plan = read_record(run).plan
    network, record = make_model(
        with_settings(read_recipe("paper_scratch"), [f"training.encoder={how}"]), plan, str(run)
    )
    torch.testing.assert_close(logits(network), logits(load_model(run).network), atol=1e-5, rtol=1e-5)
    assert record.recipe.training.encoder == how
    assert network.encoder.frozen == (how == "frozen")
    assert any(".lora_" in name for name in network.state_dict()) == (how == "lora")


@pytest.mark.parametrize("how", ["lora", "last_stage"])
def test_without_weights_there_is_nothing_to_adapt(blobs: Path, tmp_path: Path, how: str) -> None:
    message = f"^training.encoder={how} adapts a pre-trained encoder, and --weights none gives none$"
    with pytest.raises(ConfigError, match=message):
        train_run(TrainRequest(blobs, tmp_path / "run", recipe=recipe(f"auto+{how}"), weights="none"))
    assert not (tmp_path / "run").exists()
