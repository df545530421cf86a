"""The demo cut down to a minute: everything it promises is there, and its last line can be read by a machine."""

import re
from pathlib import Path

import pytest

from sam2_3dmed.config import RunConfig
from sam2_3dmed.errors import DataError
from sam2_3dmed.experiments import demo

LINE = re.compile(r"^demo: mean_dice=(\d\.\d{4}) min_class_dice=(\d\.\d{4}) threshold_dice=(\d\.\d{4}) seconds=(\d+)$")


def small_recipe(minutes: float | None = None) -> RunConfig:
    config = demo_recipe(minutes)
    training = {"epochs": 1, "samples_per_epoch": 2, "batch_size": 2, "validate_every": 1, "workers": 0}
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=training),
            "model": config.model.model_copy(update={"image_size": 64}),
        }
    )


demo_recipe = demo.demo_recipe


@pytest.mark.slow
def test_the_demo_leaves_data_masks_scores_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "demo_recipe", small_recipe)
    earlier = tmp_path / "demo" / "run"
    earlier.mkdir(parents=True)
    for name in ("config.yaml", "earlier"):
        (earlier / name).touch()
    line = demo.run_demo(tmp_path / "demo", num_cases=5)
    assert not (earlier / "earlier").exists(), "the run of an earlier demo is replaced"
    match = LINE.match(line)
    assert match
    assert 0 <= float(match[2]) <= float(match[1]) <= 1
    assert 0 < float(match[3]) <= 0.5
    root = tmp_path / "demo"
    assert (root / "data" / "dataset.json").is_file()
    assert list((root / "run" / "predictions").glob("*.nii.gz"))
    assert (root / "run" / "evaluation" / "summary.json").is_file()
    assert (root / "pictures" / "held_out.png").stat().st_size > 10_000
    assert "phantom_" in (root / "run" / "report.html").read_text()


def test_the_demo_does_not_touch_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(demo, "write_phantom_dataset", lambda *args, **options: tmp_path / "data")
    with pytest.raises(DataError, match="holds something that is not a run"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"
