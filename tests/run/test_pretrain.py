"""Pre-training on made-up anatomy, the whole way: a run that stops and goes on, prompts, and weights for other runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.config import read_recipe, with_settings
from sam2_3dmed.errors import ConfigError, DataError, UserError
from sam2_3dmed.export.run import export_run
from sam2_3dmed.processes.signals import Terminated
from sam2_3dmed.run import pretrain as module
from sam2_3dmed.run.pretrain import PretrainRequest, pretrain
from sam2_3dmed.run.run_folder import load_model, read_record, read_weights
from sam2_3dmed.run.train import TrainRequest, train
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

SETTINGS = [
    *("model.size=nano", "model.image_size=64", "slab_slices=6", "training.batch_size=2", "training.workers=0"),
    *("training.epochs=2", "training.samples_per_epoch=4", "training.validate_every=1"),
]


def recipe(*settings: str):
    return with_settings(read_recipe("pretrain", from_scratch=True), [*SETTINGS, *settings])


@pytest.fixture(scope="module", autouse=True)
def _few_volumes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VALIDATION_VOLUMES", 2)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all parts, so that every one meets prompts."""
    parts = ("model.srpp=true", "model.boundary=true")
    return pretrain(PretrainRequest(tmp_path_factory.mktemp("pretrained") / "run", recipe(*parts)))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(PretrainRequest(tmp_path / "whole", recipe()))

    def stop(self: object, *_: object) -> None:
        raise Terminated

    with monkeypatch.context() as patch:
        patch.setattr("sam2_3dmed.training.loop.TrainingLoop._end_epoch", _after_first(stop))
        with pytest.raises(Terminated):
            pretrain(PretrainRequest(tmp_path / "parts", recipe()))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = pretrain(PretrainRequest(tmp_path / "parts", resume=True))
    for name, tensor in read_weights(whole / "model.safetensors").items():
        assert torch.equal(tensor, read_weights(parts / "model.safetensors")[name]), name


def _after_first(stop):
    from sam2_3dmed.training.loop import TrainingLoop

    original = TrainingLoop._end_epoch

    def end_epoch(self, metrics):
        if self.progress.epoch == 1:
            stop(self)
        original(self, metrics)

    return end_epoch


def test_a_box_says_which_object_and_without_one_there_is_none(run: Path, tmp_path: Path) -> None:
    record = read_record(run)
    assert record.about.endswith("prompted")
    predictor = load_model(run)
    torch.manual_seed(0)
    with torch.no_grad():  # a few steps taught it little of corners
        predictor.network.segmentation.mask_decoder.point_embed.weight.normal_(std=3)
    volume = Volume(np.random.default_rng(0).random((40, 40, 9), dtype=np.float32), np.eye(4))
    one, other = np.zeros((2, 40, 40, 9), np.uint8)
    one[5:15, 5:15, 4], other[20:38, 20:38, 4] = 1, 1
    for name, array in (("one", one), ("other", other)):
        predictor(volume, reference=volume.with_array(array), probabilities=tmp_path / name)
    found = [Volume.read(tmp_path / f"{name}_object.nii.gz").array for name in ("one", "other")]
    assert found[0].shape == volume.shape
    assert not np.array_equal(*found)
    with pytest.raises(ConfigError, match="no reference to draw"):
        predictor(volume)
    with pytest.raises(ConfigError, match="only a stream"):
        load_model(run, mode="slabs")
    with pytest.raises(ConfigError, match="takes prompts"):
        export_run(run, tmp_path / "onnx")


def test_other_runs_start_from_its_encoder(run: Path, blobs: Path, tmp_path: Path) -> None:
    settings = ["model.size=nano", "slab_slices=6", "training.epochs=1", "training.samples_per_epoch=2"]
    settings += ["training.batch_size=2", "training.workers=0", "training.validate_every=1"]
    # A rate of almost nothing: what the run has at its end is what it had at first.
    scratch = with_settings(read_recipe("scratch"), [*settings, "training.learning_rate=1e-12"])
    folder = train(TrainRequest(blobs, tmp_path / "run", recipe=scratch, weights=str(run), cache=tmp_path / "cache"))
    before, after = (read_weights(each / "model.safetensors") for each in (run, folder))
    same = [name for name in after if name.startswith("encoder.")]
    assert len(same) > 50
    assert set(same) <= before.keys()
    for name in same:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)
    record = read_record(folder)
    assert record.recipe.training.encoder == "train"
    assert not record.recipe.model.promptable
    mask = load_model(folder)(Volume.read(blobs / "imagesTr" / "blob_00.nii.gz"))
    assert mask.shape == read_label(blobs / "labelsTr" / "blob_00.nii.gz").shape


def command(*arguments: object) -> UserError | None:
    result = CliRunner().invoke(app, ["pretrain", *map(str, arguments)])
    assert result.exit_code == 0 or isinstance(result.exception, UserError), result.output
    return result.exception


def test_mistakes_are_told_at_once(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--out", tmp_path / "a", "--recipe", "scratch"], "the network is promptable"),
        (["--out", tmp_path / "a", "--set", "model.box_every=2"], "the network is promptable"),
        (["--out", tmp_path / "a", "--set", "loss.terms={dica: 1}"], "no term 'dica'"),
        (["--out", tmp_path / "a", "--set", "feature_cache.views=2"], "has no use for feature_cache.views"),
        (["--out", tmp_path / "a", "--set", "inference.mode=slabs"], "has no use for inference.mode=slabs"),
        (["--out", tmp_path / "a", "--resume"], "no run to resume here"),
        (["--out", run], "there is a run here already"),
        (["--out", run, "--resume", "--minutes", "3"], "takes no --minutes"),
        (["--out", tmp_path / "a", "--weights", tmp_path / "none"], "none: no such weights"),
    ):
        assert words in str(command(*arguments))
    assert command("--out", run, "--resume") is None  # finished


def test_a_promptable_network_learns_from_no_data_set(blobs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.promptable.*pretrain"):
        train(TrainRequest(blobs, tmp_path / "run", recipe=recipe(), weights="none"))
    assert not (tmp_path / "run").exists()


def test_a_run_of_train_is_not_gone_on_with(blob_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(blob_run, tmp_path / "run"))
    (folder / "model.safetensors").unlink()  # as if it were not finished
    with pytest.raises(ConfigError, match="no run of pretrain"):
        pretrain(PretrainRequest(folder, resume=True))


def test_no_run_where_another_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        pretrain(PretrainRequest(tmp_path / "file", recipe()))
