"""`predict` on many volumes and on DICOM from the command line, and `prepare` on what it wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner, Result

from sam2_3dmed.cli import main as cli
from sam2_3dmed.cli.options import end_with
from sam2_3dmed.dicom.codes import UNKNOWN, Code
from sam2_3dmed.dicom.segmentation import segment_codes
from sam2_3dmed.errors import ConfigError, UserError, WeightsError
from sam2_3dmed.run.run_folder import remember_codes
from sam2_3dmed.volume.label import read_label


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["predict", *map(str, arguments)])


def refused(*arguments: object) -> UserError:
    """What `main` prints as one line."""
    result = predict(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return result.exception


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def images(blobs: Path, tmp_path: Path) -> Path:
    """Three of the blobs."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        shutil.copy2(blobs / "imagesTr" / f"blob_{number:02d}.nii.gz", tmp_path / "in")
    return tmp_path / "in"


def test_a_second_run_passes_over_what_is_finished(images: Path, blob_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = predict("--list", tmp_path / "list.csv", "-m", blob_run, "-o", out)
    assert "list.csv: cannot be read" in str(result.exception)
    (tmp_path / "list.csv").write_text("input\nin/blob_00.nii.gz\nin/blob_01.nii.gz\n")
    assert "2 of 2 masks written" in predict("--list", tmp_path / "list.csv", "-m", blob_run, "-o", out).output
    result = predict(images, "-m", blob_run, "-o", out)
    assert "3 of 3 masks written" in result.output
    assert "2 of them by an earlier run" in result.output
    assert [entry["name"] for entry in entries(out)] == ["blob_00", "blob_01", "blob_02"]


def test_what_changes_a_mask_predicts_it_again(images: Path, blob_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(images, "-m", blob_run, "-o", out)
    assert "earlier" not in predict(images, "-m", blob_run, "-o", out, "--set", "inference.direction=forward").output
    assert "earlier" not in predict(images, "-m", blob_run, "-o", out, "--overwrite").output
    assert [entry["name"] for entry in entries(out)] == ["blob_00", "blob_01", "blob_02"]  # the old ones are forgotten
    (entry,) = [entry for entry in entries(out) if entry["name"] == "blob_01"]
    assert entry["options"]["direction"] == "both"
    assert "batch_size" not in entry["options"]
    assert (
        "3 of them by an earlier run"
        in predict(images, "-m", blob_run, "-o", out, "--set", "inference.direction=both").output
    )


@pytest.mark.slow
def test_two_workers(images: Path, blob_run: Path, tmp_path: Path) -> None:
    (images / "bad.nii.gz").write_bytes(b"no volume")
    result = predict(images, "-m", blob_run, "-o", tmp_path / "out", "--workers", 2)
    assert result.exit_code == 1
    assert "3 of 4 masks written" in result.output
    assert "bad.nii.gz" in result.output
    predict(images, "-m", blob_run, "-o", tmp_path / "here")
    for name in ("blob_00", "blob_01", "blob_02"):
        masks = [read_label(tmp_path / folder / f"{name}.nii.gz").array for folder in ("out", "here")]
        assert np.array_equal(*masks)


def test_options_that_do_not_go_together(images: Path, blob_run: Path, tmp_path: Path) -> None:
    given = ["-m", blob_run, "-o", tmp_path / "out"]
    lines = {
        ("--device", "cuda:0,cuda:1", "--workers", 1): "--workers 1: 2 devices need as many workers",
        ("--cluster", "cloud"): "--cluster cloud: expected ray or slurm",
        ("--cluster", "ray"): "--cluster ray needs --workers",
        ("--cluster", "ray", "--workers", 2, "--slurm", "mem_gb=4"): "--slurm is for --cluster slurm",
        ("--cluster", "slurm", "--workers", 2, "--slurm", "gpu"): "--slurm gpu: expected KEY=VALUE",
        ("--set", "inference.direction=up"): "--set: inference.direction: Input should be 'forward'",
        ("--set", "training.epochs=3"): "--set training.epochs=3: predict changes only inference.*",
        ("--set", "inference.min_volume_ml=much"): "--set: inference.min_volume_ml",
        ("--format", "png"): "--format png",
    }
    for options, line in lines.items():
        error = refused(images, *given, *options)
        assert isinstance(error, ConfigError)
        assert line in str(error)
    assert "nothing to predict" in str(refused(*given))
    assert not (tmp_path / "out").exists()


def test_probabilities_are_part_of_what_is_finished(images: Path, blob_run: Path, tmp_path: Path) -> None:
    given = [images, "-m", blob_run, "-o", tmp_path / "out"]
    predict(*given)
    assert "earlier" not in predict(*given, "--probabilities").output
    files = {file.name for file in (tmp_path / "out" / "probabilities").iterdir()}
    assert files == {f"blob_{number:02d}_{name}.nii.gz" for number in range(3) for name in ("bright", "dark")}
    assert "3 of them by an earlier run" in predict(*given, "--probabilities").output
    (tmp_path / "out" / "probabilities" / "blob_01_dark.nii.gz").unlink()
    assert "2 of them by an earlier run" in predict(*given, "--probabilities").output
    assert {file.name for file in (tmp_path / "out" / "probabilities").iterdir()} == files


def test_post_processing(images: Path, blob_run: Path, tmp_path: Path) -> None:
    """A ball of either class has a few ml."""
    given = [images / "blob_00.nii.gz", "-m", blob_run]
    predict(*given, "-o", tmp_path / "all")
    predict(
        *given, "-o", tmp_path / "none", "--set", "inference.min_volume_ml=1000", "--set", "inference.fill_holes=true"
    )
    predict(*given, "-o", tmp_path / "one", "--set", "inference.min_volume_ml={dark: 1000}")
    whole, none, one = (read_label(tmp_path / name / "blob_00.nii.gz").array for name in ("all", "none", "one"))
    assert set(np.unique(whole)) == {0, 1, 3}
    assert not none.any()
    assert np.array_equal(one, np.where(whole == 1, 1, 0))
    error = refused(*given, "-o", tmp_path / "out", "--set", "inference.min_volume_ml={lung: 1}")
    assert str(error) == "min_volume_ml: no class 'lung'; there are bright, dark"


def test_a_run_that_is_not_finished(images: Path, blob_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(blob_run / "config.yaml", tmp_path / "run")
    error = refused(images, "-m", tmp_path / "run", "-o", tmp_path / "out")
    assert isinstance(error, WeightsError)
    assert "this run is not finished" in str(error)


class TestCodes:
    """Of the run, of `--codes`, and in the manifest."""

    OF_THE_RUN = Code("T-C3000", "SRT", "Spleen")

    @pytest.fixture
    def run(self, blob_run: Path, tmp_path: Path) -> Path:
        folder = Path(shutil.copytree(blob_run, tmp_path / "run"))
        remember_codes(folder, {"bright": self.OF_THE_RUN})
        return folder

    def test_of_the_run_unless_others_are_given(self, run: Path, tmp_path: Path, write_series, stored_voxels) -> None:
        write_series(tmp_path / "study", stored_voxels((24, 28, 3)))
        (tmp_path / "mine.json").write_text('{"codes": {"dark": ["1", "99MINE", "Dark"]}}')
        given = [tmp_path / "study", "-m", run, "-o", tmp_path / "out", "--format", "dicom-seg"]
        mine = {"dark": Code("1", "99MINE", "Dark")}
        for options, codes in (((), {"bright": self.OF_THE_RUN}), (("--codes", tmp_path / "mine.json"), mine)):
            result = predict(*given, *options)
            assert result.exit_code == 0, result.output
            assert "earlier" not in result.output
            found = segment_codes(dcmread(tmp_path / "out" / "study.seg.dcm"))
            assert {name: code for name, code in found.items() if code != UNKNOWN} == codes
            assert entries(tmp_path / "out")[-1]["options"]["codes"] == {
                name: code._asdict() for name, code in codes.items()
            }
        assert "1 of them by an earlier run" in predict(*given, *options).output

    def test_they_change_no_other_format(self, images: Path, blob_run: Path, run: Path, tmp_path: Path) -> None:
        predict(images, "-m", blob_run, "-o", tmp_path / "out")
        assert "3 of them by an earlier run" in predict(images, "-m", run, "-o", tmp_path / "out").output

    def test_broken_ones_are_named(self, images: Path, run: Path, tmp_path: Path) -> None:
        (run / "codes.json").write_text("{")
        assert "run/codes.json: broken JSON" in str(refused(images, "-m", run, "-o", tmp_path / "out"))


def test_no_failure_is_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    end_with({})
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def studies(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of two patients: a CT with its study's UID, and one of JPEG 2000 whose UIDs were taken away."""
    root = tmp_path_factory.mktemp("dicom") / "studies"
    shutil.copytree(shared_data / "dicom" / "sarcoma_019" / "CT" / "image", root / "sarcoma" / "ct")
    shutil.copytree(shared_data / "dicom" / "abdomen_jpeg2000" / "image", root / "abdomen" / "ct")
    return root


@pytest.fixture(scope="module")
def mask(studies: Path, blob_run: Path) -> Path:
    """The sarcoma's as NIfTI, from the whole tree."""
    out = studies.parent / "nifti"
    result = predict(studies, "-m", blob_run, "-o", out, "--set", "inference.direction=forward")
    assert "2 of 2 masks written" in result.output
    assert {path.name for path in out.iterdir()} == {"abdomen.nii.gz", "sarcoma.nii.gz", "manifest.jsonl"}
    assert set(np.unique(read_label(out / "sarcoma.nii.gz").array)) > {0}, "empty: nothing to compare"
    return out / "sarcoma.nii.gz"


class TestDicom:
    """Real studies in; each format out is read again, by SimpleITK or by `prepare`."""

    def write(self, studies: Path, blob_run: Path, mask_format: str, out: Path) -> Path:
        result = predict(
            studies / "sarcoma",
            "-m",
            blob_run,
            "-o",
            out,
            "--set",
            "inference.direction=forward",
            "--format",
            mask_format,
        )
        assert "1 of 1 masks written" in result.output, result.output
        (written,) = (path for path in out.iterdir() if path.name != "manifest.jsonl")
        return written

    def test_nrrd(self, studies: Path, mask: Path, blob_run: Path, tmp_path: Path) -> None:
        import SimpleITK

        written = self.write(studies, blob_run, "nrrd", tmp_path)
        assert written.name == "sarcoma.seg.nrrd"
        ours, expected = SimpleITK.ReadImage(str(written)), SimpleITK.ReadImage(str(mask))
        assert np.array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(expected))
        assert np.allclose(ours.GetOrigin(), expected.GetOrigin(), atol=1e-3)
        assert np.allclose(ours.GetDirection(), expected.GetDirection(), atol=1e-6)

    @pytest.mark.parametrize(
        ("mask_format", "name"), [("dicom-seg", "sarcoma.seg.dcm"), ("rtstruct", "sarcoma.rtstruct.dcm")]
    )
    def test_dicom_and_back_by_prepare(
        self, mask_format: str, name: str, studies: Path, mask: Path, blob_run: Path, tmp_path: Path
    ) -> None:
        written = self.write(studies, blob_run, mask_format, tmp_path / "masks")
        assert written.name == name
        tree = shutil.copytree(studies / "sarcoma", tmp_path / "annotated")
        shutil.copy(written, tree)
        arguments = ["prepare", str(tree), "-o", str(tmp_path / "set"), "--labels", "bright=1", "--labels", "dark=3"]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        assert "1 cases in" in result.output
        (label,) = (tmp_path / "set" / "labelsTr").iterdir()
        assert np.array_equal(read_label(label).array, read_label(mask).array)

    def test_prepare_tells_what_is_missing(self, studies: Path, shared_data: Path, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        shutil.copytree(shared_data / "dicom" / "sarcoma_019" / "CT" / "rtstruct", tree / "rt")
        shutil.copytree(studies / "sarcoma", tree / "image")
        sorted((tree / "image" / "ct").iterdir())[20].unlink()
        result = CliRunner().invoke(cli.app, ["prepare", str(tree), "-o", str(tmp_path / "set")])
        assert isinstance(result.exception, UserError)
        assert "1 missing slices" in str(result.exception)
