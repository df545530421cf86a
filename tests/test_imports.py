"""Who may import whom (CONTRIBUTING.md has the table in words), and that the light parts stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sam2_3dmed"
BELOW_RUNS = {
    "atomic",
    "errors",
    "termination",
    "crew",
    "slurm",
    "pool",
    "volume",
    "dicom",
    "config",
    "data",
    "model",
    "evaluation",
    "inference",
    "training",
}
MAY_IMPORT = {
    "errors": set(),
    "atomic": {"errors"},
    "crew": {"errors"},
    "pool": {"crew", "errors"},
    "volume": {"atomic", "errors"},
    "dicom": {"atomic", "errors", "volume"},
    "config": {"errors", "volume"},
    "evaluation": {"atomic", "errors", "pool", "volume"},
    "model": {"errors"},
    "data": {"atomic", "errors", "pool", "config", "volume"},
    "slurm": {"errors"},
    "inference": {"atomic", "errors", "crew", "pool", "slurm", "model", "volume", "dicom"},
    "termination": set(),
    "training": {"atomic", "errors", "termination", "config", "volume", "data", "model", "inference", "evaluation"},
    "baselines": BELOW_RUNS,
    "records": {"atomic", "errors", "config", "baselines"},
    "runs": BELOW_RUNS | {"records", "baselines"},
    "train_request": BELOW_RUNS | {"first_weights", "baselines"},
    "starts": BELOW_RUNS | {"records", "runs", "first_weights", "baselines", "train_request"},
    "report": {"atomic", "errors", "volume", "config", "data", "evaluation", "inference", "records", "runs"},
    "export": {"atomic", "errors", "volume", "data", "model", "inference", "records", "runs"},
    "first_weights": BELOW_RUNS | {"records", "runs"},
    "prepare": {"atomic", "errors", "volume", "dicom"},
    "train": BELOW_RUNS | {"records", "runs", "starts", "train_request", "baselines"},
    "demo": BELOW_RUNS | {"records", "runs", "report", "train"},
    "experiments": BELOW_RUNS | {"baselines", "records", "runs", "report", "train"},
    "cli": BELOW_RUNS
    | {"runs", "report", "train", "demo", "prepare"}
    | {"cli_experiments", "cli_baselines"}
    | {"termination", "cli_inference", "cli_training", "cli_export", "cli_evaluation"},
    "cli_inference": {"errors", "pool", "slurm", "dicom", "inference", "records", "runs", "cli_evaluation"},
    "cli_training": {"errors", "config", "baselines", "train", "cli_evaluation"},
    "cli_experiments": {"errors", "slurm", "experiments", "cli_evaluation", "cli_inference"},
    "cli_baselines": {"errors", "baselines", "cli_evaluation"},
    "cli_export": {"export", "cli_evaluation"},
    "cli_evaluation": {"errors", "pool", "evaluation", "report"},
    "__main__": {"cli"},
    "__init__": {"volume", "evaluation", "inference"},
}
EXCEPTIONS = {("inference/predictor.py", "runs")}  # Predictor.load, the public way in, inside a function


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """The first part below sam2_3dmed of every import in a file, and whether it stands inside a function."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            below = [alias.name for alias in node.names] if node.module == "sam2_3dmed" else [""]
            names = [f"{node.module}.{name}" for name in below]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "sam2_3dmed":
                yield rest.split(".")[0], id(node) in inside


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_only_what_it_may(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    part = name.split("/")[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may import"
    for target, in_function in imported(ast.parse(path.read_text(encoding="utf-8"))):
        allowed = target in MAY_IMPORT[part] | {part} or (in_function and (name, target) in EXCEPTIONS)
        assert allowed, f"{name} imports {target or 'the whole package'}"


@pytest.mark.parametrize("module", ["volume.nifti", "volume.slices", "volume.preprocess", "evaluation.cases", "errors"])
def test_light_parts_do_not_import_torch(module: str) -> None:
    code = f"import sys, sam2_3dmed.{module}; print(*{{'torch', 'transformers', 'lightning'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sam2_3dmed.runs", [("runs", False)]),
        ("from sam2_3dmed import cli, errors", [("cli", False), ("errors", False)]),
        ("from sam2_3dmed.data.cache import CaseCache", [("data", False)]),
        ("def f():\n    from sam2_3dmed.runs import load", [("runs", True)]),
        ("import torch\nfrom sam2_3dmedic import x", []),
    ],
)
def test_the_reader_of_imports(code: str, expected: list[tuple[str, bool]]) -> None:
    assert list(imported(ast.parse(code))) == expected
