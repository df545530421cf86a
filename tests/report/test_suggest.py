"""What to label next: scans that the model is unsure of and has seen little of, and their slices."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.data.sparse import read_labelled_slices
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import UserError
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.report.suggest import Examined, examine, mean_features, rank, suggest, urgent_slices
from sam2_3dmed.run.run_folder import load_model
from sam2_3dmed.volume.volume import Volume


def scan(share: float, *features: float) -> Examined:
    """share: disagreement over what is found, but for the smoothing."""
    return Examined(np.array([share * 1000, 0.0]), 1000.0, np.array(features))


def test_the_unsure_come_first_and_what_is_alike_does_not_follow() -> None:
    scans = {
        "sure": scan(0.05, 0, 0),
        "unsure": scan(0.5, 1, 0),
        "its twin": scan(0.5, 1.02, 0),
        "another kind": scan(0.3, -1, 1),
    }
    order = rank(scans, [np.array([0.0, 0.2])], {name: [3] for name in scans})
    assert [found.name for found in order] == ["another kind", "its twin", "sure", "unsure"]
    assert order[0].disagreement == pytest.approx(300 / 1001)
    assert all(found.slices == (3,) for found in order)
    assert order[0].score <= 1


def test_what_is_like_a_labelled_scan_comes_later() -> None:
    scans = {"like it": scan(0.4, 2, 2), "unlike it": scan(0.3, -2, 0)}
    places = dict.fromkeys(scans, ())
    assert [s.name for s in rank(scans, [np.array([2.0, 2.1])], places)] == ["unlike it", "like it"]
    assert rank(scans, [], places)[0].name == "like it"  # nothing to be like


def test_where_nothing_is_found_there_is_no_disagreement() -> None:
    nothing = Examined(np.zeros(4), 0.0, np.zeros(2))
    assert nothing.share == 0
    assert len(rank({"a": nothing, "b": nothing}, [], {"a": (), "b": ()})) == 2


def test_urgent_slices_lie_apart() -> None:
    disagreement = np.zeros(30)
    disagreement[[10, 11, 12, 20, 2]] = [5, 6, 4, 3, 1]
    assert urgent_slices(disagreement, 3) == [11, 20, 2]
    assert urgent_slices(np.array([1.0, 2.0]), 5) == [1, 0]


def test_disagreement_is_between_the_scan_and_its_mirror_image(blob_run: Path, blobs: Path) -> None:
    """The mirrored logits are known from the mean of both, which a prediction with flips takes."""
    predictor = load_model(blob_run)
    image = Volume.read(blobs / "imagesTr" / "blob_00.nii.gz")
    found, own, mirrored = examine(predictor, image)
    stack = predictor.preprocessing.stack(image)
    plain, mean = (
        torch.stack([logits for _, logits in sorted(slice_logits(Forward(predictor.network, stack, config), 3))])
        for config in (predictor.config.model_copy(update={"flips": flips}) for flips in (False, True))
    )
    p, q = torch.sigmoid(plain), torch.sigmoid(2 * mean - plain)
    expected = (p - q).abs().sum(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(found.disagreement, expected, rtol=0.02)
    assert found.found == pytest.approx(float((p + q).sum()), rel=0.01)
    assert np.array_equal(own.array, predictor(image).array)
    assert own.shape == mirrored.shape == image.shape
    torch.testing.assert_close(torch.tensor(found.features), torch.tensor(mean_features(predictor, image)))


@pytest.fixture(scope="module")
def run(blob_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on two of the blobs."""
    folder = Path(shutil.copytree(blob_run, tmp_path_factory.mktemp("suggest") / "run"))
    Split(("blob_03", "blob_04"), ("blob_05",), ("blob_06",)).write(folder / "split.json")
    return folder


@pytest.fixture(scope="module")
def suggested(run: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suggested") / "out"
    order, failures = suggest(run, sorted((blobs / "imagesTr").iterdir())[:3], out, slices=2, data=blobs)
    assert not failures
    assert sorted(found.name for found in order) == ["blob_00", "blob_01", "blob_02"]
    return out


def test_the_files(suggested: Path, blobs: Path) -> None:
    lines = [line for _, line in read_csv(suggested / "suggestions.csv").lines]
    assert [line["rank"] for line in lines] == ["1", "2", "3"]
    assert {line["source"] for line in lines} == {str(blobs / "imagesTr" / f"blob_0{i}.nii.gz") for i in range(3)}
    chosen = read_labelled_slices(suggested / "slices.csv", "axial")  # `sparse --slices` reads it
    assert {name: len(slices) for name, slices in chosen.listed.items()} == {f"blob_0{i}": 2 for i in range(3)}
    assert all(0 <= index < 7 for slices in chosen.listed.values() for index in slices)


def test_the_page_has_a_picture_of_each_slice_and_loads_nothing(suggested: Path) -> None:
    page = (suggested / "suggestions.html").read_text()
    assert page.count("<svg ") == 6
    assert page.count('href="data:image/png;base64,') == 6
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def command(*arguments: object) -> UserError | None:
    result = CliRunner().invoke(app, ["suggest", *map(str, arguments)])
    assert result.exit_code == 0 or isinstance(result.exception, UserError), result.output
    return result.exception


def test_without_the_data_set_scans_are_compared_with_each_other(
    run: Path, blobs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = sorted((blobs / "imagesTr").iterdir())[:2]
    assert suggest(run, scans, tmp_path)[0][0].distance == 1
    assert "compared with each other only" in caplog.text


def test_mistakes_are_told(run: Path, blobs: Path, tmp_path: Path) -> None:
    image = blobs / "imagesTr" / "blob_00.nii.gz"
    few = Path(shutil.copytree(blobs, tmp_path / "few"))
    content = json.loads((few / "dataset.json").read_text())
    content["training"] = [entry for entry in content["training"] if "blob_03" not in entry["image"]]
    (few / "dataset.json").write_text(json.dumps(content))
    for arguments, words in (
        ((tmp_path, image), "not a run folder"),
        ((run, tmp_path / "none.nii.gz"), "no such file or folder"),
        ((run, image, image), "2 inputs have the name"),
        ((run, image, "--data", tmp_path), "has no dataset.json"),
        ((run, image, "--data", few), "lacks 1 cases of the split"),
    ):
        assert words in str(command(*arguments, "-o", tmp_path / "out"))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    assert "broken.nii.gz" in str(command(run, tmp_path / "broken.nii.gz", "-o", tmp_path / "out"))


def test_a_scan_that_cannot_be_read_does_not_end_the_others(run: Path, blobs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    scans = [tmp_path / "broken.nii.gz", blobs / "imagesTr" / "blob_00.nii.gz"]
    result = CliRunner().invoke(app, ["suggest", str(run), *map(str, scans), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "1 failed" in result.output
    assert "broken" in result.output
    (line,) = [line for _, line in read_csv(tmp_path / "out" / "suggestions.csv").lines]
    assert line["case"] == "blob_00"
