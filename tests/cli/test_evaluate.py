"""`report` and `predict --save-auxiliary` from the command line."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app, main
from sam2_3dmed.config import ChannelPlan, Plan, paper, with_settings
from sam2_3dmed.evaluation.cases import evaluate_cases
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.run_folder import save_model
from sam2_3dmed.volume.volume import Volume, same_grid

LABELS = {1: "bright", 3: "dark"}


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was scored on one case, by a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    channel = ChannelPlan(name="CT", normalisation="fixed", low=-130, high=130)
    plan = Plan(dataset="Blobs", channels=(channel,), labels=LABELS, slab_slices=3)
    recipe = with_settings(paper(), ["model.size=nano", "model.image_size=64", "slab_slices=3"])
    folder.mkdir()
    save_model(*make_model(recipe, plan, "none"), folder)
    truth = blobs / "labelsTr" / "blob_00.nii.gz"
    evaluate_cases([("blob_00", truth, truth)], LABELS, workers=0).write(folder / "evaluation")
    return folder


def test_a_report_from_the_command_line(run: Path, blobs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--data", str(blobs), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert f"Report: {tmp_path / 'page.html'} (" in result.output
    assert "only: blob_00" in (tmp_path / "page.html").read_text()
    assert (run / "figures" / "surfaces_only.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["report", "{blobs}"], "not a run folder"),
        (["report", "{run}", "--data", "{run}/nothing"], "nothing: no such folder"),
    ],
)
def test_mistakes_get_a_line_and_status_2(arguments, line, run: Path, blobs: Path, monkeypatch, capsys) -> None:
    given = [argument.format(run=run, blobs=blobs) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["sam2-3dmed", *given])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors.startswith("Error: ")
    assert line in errors
    assert errors.count("\n") == 1


def test_predict_saves_what_else_the_network_said(run: Path, blobs: Path, tmp_path: Path) -> None:
    image = blobs / "imagesTr" / "blob_00.nii.gz"
    arguments = ["predict", str(image), "-o", str(tmp_path), "-m", str(run), "--save-auxiliary"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"blob_00.nii.gz", "auxiliary", "manifest.jsonl"}
    assert same_grid(Volume.read(tmp_path / "auxiliary" / "blob_00_boundary.nii.gz"), Volume.read(image))
    assert (tmp_path / "auxiliary" / "blob_00_positions.json").is_file()
