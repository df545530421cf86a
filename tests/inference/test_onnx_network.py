"""Prediction by onnxruntime: the masks are PyTorch's, and a wrong file is one clear line."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sam2_3dmed import Volume, load_model
from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.evaluation.metrics import dice
from sam2_3dmed.inference.onnx_network import OnnxNetwork


@pytest.fixture(scope="module")
def hippocampus(shared_data: Path) -> Volume:
    return Volume.read(shared_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")


def of_slices(volume: Volume, depth: int) -> Volume:
    return Volume(volume.array[:, :, :depth], volume.affine)


@pytest.mark.parametrize(("num_classes", "parts"), [(2, True), (1, False)])
def test_masks_are_those_of_pytorch(make_exported, hippocampus: Volume, num_classes: int, parts: bool) -> None:
    run, exported = make_exported(num_classes, parts)
    theirs = load_model(run, device="cpu", precision="32")
    ours = load_model(exported, backend="onnxruntime")
    expected, said = theirs.with_auxiliary(hippocampus)
    found, also_said = ours.with_auxiliary(hippocampus)
    for value in range(1, num_classes + 1):
        a, b = found.array == value, expected.array == value
        assert 0.01 < b.mean() < 0.99
        assert dice(a, b) >= 0.9999
    if not parts:
        assert (also_said.boundary, also_said.positions) == (None, ())
        return
    assert np.abs(also_said.boundary.array.astype(int) - said.boundary.array).max() <= 1
    assert len(also_said.positions) == len(said.positions) > 0
    for mine, yours in zip(also_said.positions, said.positions, strict=True):
        assert mine.slices == yours.slices
        np.testing.assert_allclose(mine.relative_position, yours.relative_position, atol=1e-4)


@pytest.mark.parametrize("shifts", [False, True])
def test_views_and_one_direction_pass_through_it_too(make_exported, hippocampus: Volume, shifts: bool) -> None:
    run, exported = make_exported()
    few = of_slices(hippocampus, 5)
    options = {"direction": "backward", "flips": True, "shifts": shifts, "overlap": 0.0, "batch_size": 1}
    expected = load_model(run, device="cpu", precision="32", **options)(few).array
    found = load_model(exported, backend="onnxruntime", **options)(few).array
    assert (found == expected).mean() >= 0.9999


def test_a_volume_that_is_shorter_than_a_slab(make_exported, hippocampus: Volume) -> None:
    run, exported = make_exported()
    ours = load_model(exported, backend="onnxruntime")
    two = of_slices(hippocampus, 2)
    assert np.array_equal(ours(two).array, load_model(run, device="cpu", precision="32")(two).array)
    with pytest.raises(DataError, match=r"^1 slices are too few for slabs of 2 or 3, .* --length 1 adds it$"):
        ours(of_slices(hippocampus, 1))


def network(folder: Path, **changes) -> OnnxNetwork:
    from sam2_3dmed.run.run_folder import read_record

    given = {"run_sha256": read_record(folder).sha256(), "slab_slices": 3} | changes
    return OnnxNetwork(folder, **given)


def test_it_has_what_prediction_needs_of_a_network(make_exported) -> None:
    _, exported = make_exported()
    made = network(exported)
    assert made.device == torch.device("cpu")
    assert made.eval() is made
    assert made.srpp is not None
    assert made.boundary is not None
    features = made.encoder(torch.rand(2, 3, 1, 50, 70))
    assert [level.shape for level in features] == [(2, 3, 64, side, side) for side in (4, 8, 16)]
    assert made.decode_slabs(made.project(features)).segmentation.shape == (2, 2, 3, 16, 16)
    _, plain = make_exported(1, False)
    assert (network(plain).srpp, network(plain).boundary) == (None, None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mode": "stream"}, r"^mode stream: --backend onnxruntime has slabs only"),
        ({"precision": "bf16"}, r"^precision bf16: --backend onnxruntime computes its files as they are"),
        ({"compile": True}, r"^compile: "),
    ],
)
def test_passes_that_only_pytorch_has(make_exported, changes: dict[str, object], line: str) -> None:
    _, exported = make_exported()
    made = network(exported)
    made.require(InferenceConfig())
    with pytest.raises(ConfigError, match=line):
        made.require(InferenceConfig(**changes))
    with pytest.raises(ConfigError, match=line):
        load_model(exported, backend="onnxruntime", **changes)


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def change_property(path: Path, key: str, value: str) -> None:
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {key: value})
    onnx.save(model, path)


def test_files_of_another_model(make_exported, tmp_path: Path) -> None:
    _, exported = make_exported()
    _, other = make_exported(1, False)
    mixed = copy_of(exported, tmp_path / "mixed")
    shutil.copy(other / "slab_3.onnx", mixed)
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: of another model or plan than config\.yaml describes"):
        load_model(mixed, backend="onnxruntime")

    retrained = copy_of(exported, tmp_path / "retrained")
    change_property(retrained / "slab_3.onnx", "model_sha256", "ab")
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: of other weights than the files beside it"):
        load_model(retrained, backend="onnxruntime")

    beside = copy_of(exported, tmp_path / "beside")
    (beside / "model.safetensors").write_bytes(b"trained further")
    with pytest.raises(WeightsError, match=r"encoder\.onnx: of other weights than the files beside it"):
        load_model(beside, backend="onnxruntime")


def test_files_of_another_version_damaged_or_missing(make_exported, tmp_path: Path) -> None:
    _, exported = make_exported()
    broken = copy_of(exported, tmp_path / "broken")
    change_property(broken / "slab_3.onnx", "format", "99")
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: written by sam2-3dmed .* in format 99"):
        load_model(broken, backend="onnxruntime")
    shutil.copy(broken / "slab_2.onnx", broken / "slab_3.onnx")
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: holds what belongs in slab_2\.onnx$"):
        load_model(broken, backend="onnxruntime")
    (broken / "slab_3.onnx").unlink()
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: no such file"):
        load_model(broken, backend="onnxruntime")
    content = (broken / "encoder.onnx").read_bytes()
    (broken / "encoder.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"encoder\.onnx: cannot be read: "):
        load_model(broken, backend="onnxruntime")


def test_backends_that_do_not_fit_the_folder(make_exported) -> None:
    run, exported = make_exported()
    with pytest.raises(WeightsError, match=r"run: has no ONNX files; sam2-3dmed export --model .* makes them"):
        load_model(run, backend="onnxruntime")
    with pytest.raises(WeightsError, match=r"exported: holds ONNX files and no model\.safetensors; --backend onnxrunt"):
        load_model(exported)
    with pytest.raises(ConfigError, match=r"--backend tensorrt: expected pytorch or onnxruntime"):
        load_model(exported, backend="tensorrt")
    with pytest.raises(ConfigError, match=r"device cuda: --backend onnxruntime runs on the CPU"):
        load_model(exported, backend="onnxruntime", device="cuda")
