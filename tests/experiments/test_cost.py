"""What a model costs, against numbers worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sam2_3dmed.experiments.cost import counting, num_parameters


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
