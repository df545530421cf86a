"""`export` and `predict --backend onnxruntime`, from the command line."""

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.volume.volume import Volume


def test_export_beside_the_run_then_predict(write_random_run, tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run", num_classes=1, parts=False)
    array = np.random.default_rng(0).integers(0, 100, (20, 24, 4)).astype(np.int16)
    Volume(array, np.diag([-1.0, -1.0, 2.0, 1.0])).write(tmp_path / "scan.nii.gz")
    call = ["export", "--model", str(run), "-o", str(run), "--check", str(tmp_path / "scan.nii.gz")]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(" (")[0] for line in lines] == [str(run / "encoder.onnx"), str(run / "slab_3.onnx")]
    assert all("from PyTorch, relatively" in line for line in lines)

    masks = {}
    for backend in ("pytorch", "onnxruntime"):
        out = tmp_path / backend
        call = ["predict", str(tmp_path / "scan.nii.gz"), "-o", str(out), "--model", str(run), "--backend", backend]
        result = CliRunner().invoke(
            app, [*call, "--device", "cpu", "--set", "inference.precision=32"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        masks[backend] = Volume.read(out / "scan.nii.gz").array
    assert np.array_equal(masks["pytorch"], masks["onnxruntime"])
    assert 0 < masks["pytorch"].mean() < 1
