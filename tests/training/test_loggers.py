"""Loggers by name, entries that a resumed run goes on with, and the line that says what is missing."""

import json
from pathlib import Path

import pytest

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.training.loggers import ENTRIES_FILE, TensorBoardLogger, make_loggers, require_loggers


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path) -> None:
    (logger,) = make_loggers(["tensorboard"], tmp_path)
    assert isinstance(logger, TensorBoardLogger)
    logger.log({"train/total": 1.0}, step=3)
    logger.close(finished=True)
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("sam2_3dmed.training.loggers.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"^logger {name} needs the extra: pip install 'sam2-3dmed\[{name}\]'$"):
        require_loggers([name])


def test_mlflow_keeps_files_in_the_run_folder_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step, value in ((1, 0.5), (2, 0.25)):  # the second as a resumed run makes it
        (logger,) = make_loggers(["mlflow"], tmp_path)
        logger.log({"train/total": value, "dice (left)": 1.0}, step=step)
        logger.close(finished=True)
    assert logger.client.get_run(logger.run_id).info.status == "FINISHED"
    history = logger.client.get_metric_history(logger.run_id, "train/total")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]
    assert json.loads((tmp_path / ENTRIES_FILE).read_text()) == {"mlflow": logger.run_id}
    assert (tmp_path / "mlruns").is_dir()


@pytest.mark.slow
def test_wandb_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (logger,) = make_loggers(["wandb"], tmp_path)
    logger.log({"train/total": 0.5}, step=1)
    entry = logger.run.id
    logger.close(finished=True)
    assert json.loads((tmp_path / ENTRIES_FILE).read_text()) == {"wandb": entry}
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{entry}/*.wandb"))


def test_a_broken_list_of_entries_is_named(tmp_path: Path) -> None:
    for text, line in (("[]]", "broken JSON"), ("[]", "an object"), ('{"wandb": 5}', "expected the entry")):
        (tmp_path / ENTRIES_FILE).write_text(text)
        with pytest.raises(DataError, match=rf"loggers\.json: {line}"):
            make_loggers(["wandb"], tmp_path)
