"""Slabs through a network that is one: what a batch may not change, and a batch that truly does not fit."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.inference.slabs import slab_logits
from sam2_3dmed.inference.tta import Forward


class TestRealNetwork:
    @pytest.mark.parametrize("depth", [1, 3, 7])
    def test_batches_change_nothing(self, network, depth):
        slices = np.random.default_rng(0).random((depth, 1, 20, 30), dtype=np.float32)
        one, many = (self._run(network, slices, batch_size) for batch_size in (1, 5))
        assert one.shape == (depth, 2, 16, 16)
        torch.testing.assert_close(many, one, atol=1e-4, rtol=1e-4)

    def test_one_slab_is_the_network_itself(self, network):
        slices = np.random.default_rng(1).random((3, 1, 20, 30), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(slices).unsqueeze(0)).segmentation[0].transpose(0, 1)
        found = self._run(network, slices, 1, direction="forward", slab_slices=8)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @staticmethod
    def _run(network, slices, batch_size, direction="both", slab_slices=4):
        with torch.inference_mode():
            config = InferenceConfig(direction=direction, batch_size=batch_size, precision="32")
            found = slab_logits(Forward(network, slices, config), slab_slices)
            return torch.stack([logits for _, logits in found])


UNDER_A_LIMIT = """
import logging, os, resource, sys
import numpy as np, torch
from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.build import build_network
logging.basicConfig(level=logging.WARNING, format="%(message)s")
torch.manual_seed(0)
torch.set_num_threads(1)
network = build_network(NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False), 2).eval()
slices = np.random.default_rng(0).random((60, 1, 20, 30), dtype=np.float32)
def run(batch_size):
    config = InferenceConfig(direction="both", overlap=0.7, batch_size=batch_size, precision="32")
    return torch.stack([logits for _, logits in slice_logits(Forward(network, slices, config), 6)])
def of_address_space(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) * 1024
expected = run(1)
used = of_address_space("VmSize")
reader, writer = os.pipe()
if not os.fork():  # a copy of this process finds out what the whole batch takes
    run(1000)
    os.write(writer, str(of_address_space("VmPeak") - used).encode())
    os._exit(0)
room = int(os.read(reader, 100)) // 2
assert room > 10 * 2**20, room  # much more than a single slab takes, which `expected` left room for besides
resource.setrlimit(resource.RLIMIT_AS, (used + room,) * 2)
torch.testing.assert_close(run(1000), expected, atol=1e-4, rtol=1e-4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v works on Linux")
def test_a_batch_beyond_a_real_limit_of_memory_goes_on_one_by_one():
    # Python 3.12 warns of forking where there may be threads; there are none that matter.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", UNDER_A_LIMIT]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stderr.strip() == "a batch of 56 slabs does not fit in memory: going on one by one"
    assert answer.returncode == 0
