"""What the options of training come to; what contradicts itself is one line. Training itself: test_train, test_cli."""

from pathlib import Path

import pytest

from sam2_3dmed.cli.predict import predict
from sam2_3dmed.cli.train import _fold, find_rate, train
from sam2_3dmed.errors import ConfigError

QUICK = ["model.size=nano", "model.image_size=64", "slab_slices=2", "training.samples_per_epoch=2"]
QUICK += ["training.batch_size=1", "training.workers=0"]


@pytest.mark.parametrize("options", [{"minutes": 3.0}, {"settings": ["training.epochs=3"]}, {"gpu_memory": 8.0}])
def test_a_resumed_run_is_as_it_began(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ConfigError, match="--resume goes on as the run began; it takes no --"):
        train(tmp_path, resume=True, **options)


def test_another_system_has_its_own_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--recipe paper is for sam2_3dmed; unet has its own, which --set changes$"):
        train(tmp_path, recipe="paper", system="unet")
    with pytest.raises(ConfigError, match=r"^no system 'unetr'; did you mean 'unet'"):
        train(tmp_path, system="unetr")
    with pytest.raises(ConfigError, match="it takes no --system"):
        train(tmp_path, resume=True, system="unet")


def test_another_system_from_the_command_line(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model.size=small", "training.samples_per_epoch=2", "training.workers=0"]
    run = tmp_path / "run"
    train(blobs, run, settings=[*settings, "training.epochs=1"], test=True, system="unet")
    said = capsys.readouterr().out
    assert f"Model: {run}" in said
    assert "bright" in said
    predict(inputs=[blobs / "imagesTr" / "blob_00.nii.gz"], model=run, out=tmp_path / "masks", probabilities=True)
    assert {path.name for path in (tmp_path / "masks").iterdir()} >= {"blob_00.nii.gz", "probabilities"}
    for option, line in (
        ({"save_auxiliary": True}, "^--save-auxiliary is for SAM2-3dMed"),
        ({"settings": ["inference.mode=stream"]}, "inference: mode: not for systems that learn from patches"),
    ):
        with pytest.raises(ConfigError, match=line):
            predict(inputs=[blobs / "imagesTr"], model=run, out=tmp_path / "others", **option)


def test_a_logger_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loggers"):
        train(tmp_path, settings=["training.loggers=[comet]"])


@pytest.mark.parametrize("text", ["0/5", "6/5", "1", "a/5"])
def test_folds_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n"):
        _fold(text)
    assert _fold("2/5") == (2, 5)


def test_a_rate_is_suggested_and_nothing_else_is_left(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_3dmed.training.trials._STEPS", 24)
    find_rate(blobs, tmp_path / "run", weights="none", settings=QUICK)
    rate = float(capsys.readouterr().out.splitlines()[-1].removeprefix("--set training.learning_rate="))
    assert 1e-7 < rate < 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"learning_rates.csv", "learning_rates.png"}
