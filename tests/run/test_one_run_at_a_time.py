"""Two runs into one folder: the second is refused in one line, and nothing of the first changes."""

from pathlib import Path

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.lock import LOCK_FILE, locked
from sam2_3dmed.run.predict import PredictRequest, predict
from sam2_3dmed.run.train import TrainRequest, find_learning_rate, train


@pytest.mark.parametrize("start", [train, find_learning_rate])
def test_training(start, blobs: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(DataError, match=r"run: process \d+ on .* works in this folder; wait until it ends"):
            start(TrainRequest(blobs, tmp_path / "run", weights="none"))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_prediction(blobs: Path, write_random_run, tmp_path: Path) -> None:
    run, scan = write_random_run(tmp_path / "run"), blobs / "imagesTr" / "blob_00.nii.gz"
    request = PredictRequest(run, [scan], out=tmp_path / "masks")
    with locked(tmp_path / "masks"), pytest.raises(DataError, match=r"masks: process .* works in this folder"):
        predict(request)
    (tmp_path / "masks" / LOCK_FILE).write_text("process 1 on a machine that is gone\n")  # a stale one
    assert predict(request)[0].error is None
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"blob_00.nii.gz", "manifest.jsonl"}
    with locked(tmp_path / "masks"):
        assert predict(PredictRequest(run, [scan]))[0].mask is not None  # in memory


def test_a_manifest_is_not_written_through_a_link(blobs: Path, write_random_run, tmp_path: Path) -> None:
    run, scan = write_random_run(tmp_path / "run"), blobs / "imagesTr" / "blob_00.nii.gz"
    (tmp_path / "masks").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "masks" / "manifest.jsonl").symlink_to(tmp_path / "precious")
    (outcome,) = predict(PredictRequest(run, [scan], out=tmp_path / "masks"))
    assert "manifest.jsonl: cannot be written" in str(outcome.error)
    assert (tmp_path / "precious").read_text() == "precious"


def test_probabilities_of_two_cases_in_one_file(blobs: Path, write_random_run, tmp_path: Path) -> None:
    """Case `a` and class `b c`, case `a_b` and class `c`."""
    import shutil

    import yaml

    run = write_random_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["plan"]["labels"] = {1: "b c", 2: "c"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    scans = [tmp_path / "a.nii.gz", tmp_path / "a_b.nii.gz"]
    for scan in scans:
        shutil.copy(blobs / "imagesTr" / "blob_00.nii.gz", scan)
    request = PredictRequest(run, scans, out=tmp_path / "masks", probabilities=True)
    with pytest.raises(DataError) as caught:
        predict(request)
    line = f"a_b_c.nii.gz: {scans[0]} and {scans[1]} would both be written to this file; rename one of them"
    assert str(caught.value).endswith(line)
    assert not list((tmp_path / "masks").rglob("*.nii.gz"))
    (outcome,) = predict(PredictRequest(run, scans[:1], out=tmp_path / "masks", probabilities=True))
    names = {path.name for path in (tmp_path / "masks" / "probabilities").iterdir()}
    assert (outcome.error, names) == (None, {"a_b_c.nii.gz", "a_c.nii.gz"})
