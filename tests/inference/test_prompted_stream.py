"""A promptable network begins at the prompted slice and goes both ways; a stream equals the whole stack at once."""

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.inference import stream as stream_module
from sam2_3dmed.inference.stream import stream_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.prompts import BOTTOM_RIGHT, TOP_LEFT, Prompts, box_on_largest, boxes_where_drawn, nothing

DEPTH = 9


def network_with(**settings):
    torch.manual_seed(0)
    config = NetworkConfig(size="nano", image_size=64, slice_mixing=True, promptable=True, **settings)
    network = build_network(config, 1).eval()
    with torch.no_grad():  # what starts at zero shall count
        for name, parameter in network.named_parameters():
            if "mixer" in name or "o_proj" in name or "to_context" in name or "boundary_to" in name:
                parameter.normal_(std=0.1)
    return network


def prompts_on(*slices):
    points = nothing(DEPTH, 1)
    for index in slices:
        points[index, 0] = torch.tensor([[0.2, 0.3, TOP_LEFT], [0.6, 0.8, BOTTOM_RIGHT]])
    return Prompts(points)


def streamed(network, slices, prompts, slab_slices, **settings):
    config = InferenceConfig(precision="32", mode="stream", **settings)
    with torch.inference_mode():
        found = stream_logits(Forward(network, slices, config, prompts=prompts), slab_slices)
        indices, logits = zip(*found, strict=True)
    assert sorted(indices) == list(range(DEPTH))
    return torch.stack(logits)[np.argsort(indices)]


@pytest.fixture(scope="module")
def slices():
    return np.random.default_rng(0).random((DEPTH, 1, 64, 64), dtype=np.float32)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("memory", ["recent", "none"])
@pytest.mark.parametrize("prompted", [(0,), (4,), (8,), (3, 6)])
def test_a_stream_is_the_whole_stack_at_once(slices, memory, prompted, in_memory, monkeypatch) -> None:
    if not in_memory:
        monkeypatch.setattr(stream_module, "IN_MEMORY_BYTES", 0)
    network, prompts = network_with(memory=memory), prompts_on(*prompted)
    with torch.inference_mode():
        batch = prompts.each(lambda tensor: tensor.unsqueeze(0))
        expected = network(torch.from_numpy(slices).unsqueeze(0), batch).segmentation[0].transpose(0, 1)
    found = streamed(network, slices, prompts, slab_slices=DEPTH)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if memory == "recent":  # in either direction, since it is the prompt that says where to begin
        backward = streamed(network, slices, prompts, slab_slices=DEPTH, direction="both")
        torch.testing.assert_close(backward, expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_reaches_both_ends(slices) -> None:
    """Through memory: without mixing no other way leads from the middle to the first slice."""
    network = network_with(memory="recent", srpp=False, boundary=False)
    for mixers in (network.mixer, network.segmentation.mask_decoder.mixer8, network.segmentation.mask_decoder.mixer4):
        for parameter in mixers.parameters():
            torch.nn.init.zeros_(parameter)
    one, other = (streamed(network, slices, prompts, DEPTH) for prompts in (prompts_on(4), moved_box(4)))
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-5


def moved_box(index):
    prompts = prompts_on(index)
    prompts.points[index, 0, :, :2] += 0.15
    return prompts


def test_boxes_of_a_reference() -> None:
    label = np.zeros((4, 10, 10), np.uint8)
    label[1, 2:4, 2:4] = label[2, 2:8, 3:9] = 1
    drawn = boxes_where_drawn(label, [1]).points
    assert (drawn[:, 0, 0, 2] == TOP_LEFT).tolist() == [False, True, True, False]
    largest = box_on_largest(label, [1, 2]).points
    assert (largest[:, 0, 0, 2] == TOP_LEFT).tolist() == [False, False, True, False]
    torch.testing.assert_close(largest[2, 0], torch.tensor([[0.35, 0.25, TOP_LEFT], [0.85, 0.75, BOTTOM_RIGHT]]))
    torch.testing.assert_close(largest[:, 1], nothing(4))
