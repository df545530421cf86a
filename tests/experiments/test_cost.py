"""What a model costs, against numbers worked out by hand."""

import shutil
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.experiments import cost
from sam2_3dmed.experiments.cost import counting, num_parameters, prediction_cost
from sam2_3dmed.experiments.resource_meter import Usage


@pytest.fixture
def tested(blob_run, blobs, tmp_path, monkeypatch):
    """A run with a split, where a prediction takes 1 second, 2 MB, and 3 MB of a GPU, of this process."""

    @contextmanager
    def metered():
        yield Usage(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setattr(cost, "metered", metered)
    names = [case.name for case in read_dataset(blobs).cases]
    folder = shutil.copytree(blob_run, tmp_path / "run")
    Split(tuple(names[:2]), (names[2],), (names[3],)).write(folder / "split.json")
    return folder


def test_memory_is_this_process_s(tested, blobs):
    found = prediction_cost(tested, blobs)
    assert found["case"] == "blob_03"
    assert found["voxels"] == 24 * 28 * 7
    assert found["gflop"] > 0.1
    assert [found[name] for name in ("seconds", "memory_mb", "gpu_memory_mb", "energy_kj")] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("memory", [(700.0, 70.0), (700.0, None), (None, None)])
def test_of_nnunet_both_memories_are_its_process_s(tested, blobs, monkeypatch, memory):
    class Theirs(NnunetPredictor):
        def __init__(self):
            pass

        def __call__(self, volume, probabilities=None, *, reference=None):
            return volume

        def cost_of(self, volume):
            return 2.5, *memory

    monkeypatch.setattr(cost, "load_model", lambda folder: Theirs())
    found = prediction_cost(tested, blobs)
    assert (found["gflop"], found["seconds"]) == (2.5, 1.0)
    assert (found["memory_mb"], found["gpu_memory_mb"]) == memory


def test_parameters_are_the_numbers_in_the_file(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(())}, tmp_path / "m.safetensors")
    assert num_parameters(tmp_path / "m.safetensors") == 12 + 5 + 1


def test_a_product_and_a_convolution():
    with torch.inference_mode(), counting() as counter:
        F.linear(torch.ones(7, 3), torch.ones(5, 3), torch.ones(5))
    assert counter.get_total_flops() == 2 * 7 * 3 * 5
    with torch.inference_mode(), counting() as counter:
        F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3), padding=1)
    assert counter.get_total_flops() == 2 * (3 * 9) * 4 * 64


@pytest.mark.parametrize("length", [5, 600])
def test_attention_with_any_of_the_processors_kernels(length):
    query, key = torch.rand(2, 3, 4, 16), torch.rand(2, 3, length, 16)
    with torch.inference_mode(), counting() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3) * 4 * length * 16
