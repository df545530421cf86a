"""Weights that would give an empty mask without a word: not finite, of another type, of another number of classes."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.model.weights import read_sam2
from sam2_3dmed.run.run_folder import load_model

NAME = "segmentation.mask_decoder.conv_s0.weight"


@pytest.fixture
def run(write_random_run, tmp_path: Path) -> Path:
    return write_random_run(tmp_path / "run")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(run: Path, number: float) -> None:
    state = load_file(run / "model.safetensors")
    state[NAME].view(-1)[3] = number
    save_file(state, run / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_model(run, device="cpu")
    line = f"{run / 'model.safetensors'}: damaged weights: {NAME} hold numbers that are NaN or infinite"
    assert str(caught.value) == line


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool])
def test_weights_of_another_type(run: Path, dtype: torch.dtype) -> None:
    state = load_file(run / "model.safetensors")
    save_file(state | {NAME: state[NAME].to(dtype)}, run / "model.safetensors")
    with pytest.raises(WeightsError, match=f"{NAME} is of type {dtype}, not torch.float32$"):
        load_model(run, device="cpu")


@pytest.mark.parametrize("labels", [{1: "a"}, {1: "a", 2: "b", 3: "c"}])
def test_a_plan_with_other_classes_than_the_network(run: Path, labels: dict[int, str]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["plan"]["labels"] = labels
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(WeightsError, match="not the weights of this model: "):
        load_model(run, device="cpu")


@pytest.mark.parametrize(("key", "value"), [("size", "auto"), ("image_size", None), ("channels", None)])
def test_a_run_whose_network_is_left_open(run: Path, key: str, value: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["recipe"]["model"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=rf"config\.yaml: .*recipe\.model\.{key}: a run has a value here"):
        load_model(run, device="cpu")


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (torch.tensor([1.0, torch.nan]), "damaged weights: x hold numbers that are NaN or infinite"),
        (torch.ones(2, dtype=torch.int64), "x is of type torch.int64; weights are real numbers"),
        (torch.ones(2, dtype=torch.complex64), "x is of type torch.complex64; weights are real numbers"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_of_sam2(tmp_path: Path, tensor: torch.Tensor, line: str, kind: str) -> None:
    if kind == "folder":
        save_file({"x": tensor}, tmp_path / "model.safetensors")
    else:
        torch.save({"model": {"x": tensor}}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=line):
        read_sam2(tmp_path if kind == "folder" else tmp_path / "a.pt")


@pytest.mark.parametrize(
    "name", ["sam_prompt_encoder.mask_downscaling.2.weight", "sam_prompt_encoder.point_embeddings.1.a"]
)
def test_a_checkpoint_of_meta_with_layers_that_sam2_has_not(tmp_path: Path, name: str) -> None:
    tensors = {"sam_prompt_encoder.point_embeddings.0.weight": torch.zeros(1, 4), name: torch.zeros(1, 3)}
    torch.save({"model": tensors}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt: its tensors are not those of Meta's SAM2"):
        read_sam2(tmp_path / "a.pt")
