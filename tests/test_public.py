"""The public face: its names, imported when they are used."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sam2_3dmed
from sam2_3dmed.dicom.prepare import prepare
from sam2_3dmed.errors import UserError
from sam2_3dmed.evaluation.compare import compare_runs
from sam2_3dmed.report.build import write_report


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_these_are_all() -> None:
    names = {"PredictRequest", "TrainRequest", "Volume", "__version__", "evaluate", "load_model", "predict", "train"}
    assert set(sam2_3dmed.__all__) == names
    assert len(sam2_3dmed.__all__) == len(names)


def test_each_name_is_what_it_says() -> None:
    from sam2_3dmed.evaluation.cases import evaluate_folders
    from sam2_3dmed.run.predict import PredictRequest, predict
    from sam2_3dmed.run.run_folder import load_model
    from sam2_3dmed.run.train import TrainRequest, train
    from sam2_3dmed.volume.volume import Volume

    assert sam2_3dmed.Volume is Volume
    assert (sam2_3dmed.TrainRequest, sam2_3dmed.train) == (TrainRequest, train)
    assert (sam2_3dmed.PredictRequest, sam2_3dmed.predict) == (PredictRequest, predict)
    assert sam2_3dmed.load_model is load_model
    assert sam2_3dmed.evaluate is evaluate_folders
    assert sam2_3dmed.__version__.count(".") == 2


def test_dir_lists_them() -> None:
    assert set(sam2_3dmed.__all__) <= set(dir(sam2_3dmed))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sam2_3dmed' has no attribute 'Volum'"):
        _ = sam2_3dmed.Volum


def test_star_import_gives_all() -> None:
    assert fresh("from sam2_3dmed import *; print(Volume.__name__, train.__name__)") == "Volume train"


def test_import_is_light() -> None:
    heavy = "{'numpy', 'scipy', 'torch', 'transformers', 'lightning', 'nibabel'} & set(sys.modules)"
    assert fresh(f"import sys, sam2_3dmed; print(*{heavy})") == ""


def test_help_of_the_command_line_is_light() -> None:
    heavy = "{'numpy', 'torch', 'transformers', 'lightning'} & set(sys.modules)"
    assert fresh(f"import sys, sam2_3dmed.cli.main; print(*{heavy})") == ""


def test_module_runs_as_the_command() -> None:
    answer = subprocess.run([sys.executable, "-m", "sam2_3dmed", "--help"], capture_output=True, text=True, check=True)
    for command in ("demo", "fingerprint", "train", "predict", "evaluate"):
        assert command in answer.stdout


LONG = Path("x" * 300)
CALLS: dict[str, Callable[[Path, Path], object]] = {
    "load_model": lambda data, out: sam2_3dmed.load_model(LONG),
    "predict by a model": lambda data, out: list(sam2_3dmed.predict(sam2_3dmed.PredictRequest(LONG, [data]))),
    "evaluate predictions": lambda data, out: sam2_3dmed.evaluate(LONG, data),
    "evaluate by labels": lambda data, out: sam2_3dmed.evaluate(data, LONG),
    "train on": lambda data, out: sam2_3dmed.train(sam2_3dmed.TrainRequest(LONG, out)),
    "train into": lambda data, out: sam2_3dmed.train(sam2_3dmed.TrainRequest(data, LONG, weights="none")),
    "read": lambda data, out: sam2_3dmed.Volume.read(LONG),
    "write_report": lambda data, out: write_report(LONG),
    "prepare": lambda data, out: prepare(LONG, out),
    "compare_runs": lambda data, out: compare_runs([LONG, LONG], ["dice"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_path_that_the_system_refuses_is_an_error_of_ours(name: str, blobs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        CALLS[name](blobs, tmp_path / "out")
