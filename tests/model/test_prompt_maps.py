"""Prompts drawn as maps, and what they add to the decoder."""

import torch

from sam2_3dmed.model.prompt_maps import draw_maps
from sam2_3dmed.model.prompts import BOTTOM_RIGHT, NEGATIVE, NOTHING, POSITIVE, TOP_LEFT, Prompts, nothing
from sam2_3dmed.model.weights import load_sam2, read_sam2


def points(*places: tuple[float, float, int]) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float32)[None, None]


def test_a_box_covers_its_share_of_each_pixel() -> None:
    box = points((0.25, 0.125, TOP_LEFT), (0.75, 0.5, BOTTOM_RIGHT))
    found = draw_maps(Prompts(box), 8, 4)
    assert found.shape == (1, 4, 8, 4)
    across = torch.tensor([0.125, 1, 1, 0.125])  # half a pixel of the slice lies beyond the corners
    down = torch.tensor([0.125, 1, 1, 1, 0.125, 0, 0, 0])
    torch.testing.assert_close(found[0, 0], down[:, None] * across)
    assert not found[:, 1:].any()


def test_points_are_gaussians_where_they_lie() -> None:
    found = draw_maps(Prompts(points((0.125, 0.625, POSITIVE), (0.875, 0.125, NEGATIVE), (0, 0, NOTHING))), 4, 4)
    assert not found[:, 0].any()
    assert not found[:, 3].any()
    for which, row, column in ((1, 2, 0), (2, 0, 3)):
        assert found[0, which, row, column] == 1
        assert found[0, which].argmax() == 4 * row + column
        torch.testing.assert_close(found[0, which, row, 1 if column == 0 else 2], torch.tensor(-0.5).exp())


def test_a_mask_tells_outside_from_no_mask() -> None:
    masks = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), torch.nan)])
    masks[0, 0, 0, 1] = 1
    found = draw_maps(Prompts(nothing(2, 1), masks), 2, 2)
    assert found[0, 3].tolist() == [[-1, 1], [-1, -1]]
    assert not found[1].any()
    assert not found[:, :3].any()


def test_maps_start_without_effect_and_then_reach_their_slice(nano, slab) -> None:
    switches = {"num_classes": 1, "memory": "none", "boundary": False, "srpp": False, "promptable": True}
    network, slices = nano(**switches, prompt_maps=True), slab(depth=3)
    plain = nano(**switches)
    plain.load_state_dict(network.state_dict(), strict=False)
    given = nothing(1, 3, 1)
    given[:, 1, 0] = torch.tensor([[0.2, 0.2, TOP_LEFT], [0.6, 0.7, BOTTOM_RIGHT]])
    with torch.inference_mode():
        before = network(slices, Prompts(given)).segmentation
        torch.testing.assert_close(before, plain(slices, Prompts(given)).segmentation)
        for conv in network.segmentation.mask_decoder.prompt_maps.children():
            conv.weight.normal_(generator=torch.Generator().manual_seed(0))
        changed = (network(slices, Prompts(given)).segmentation - before).abs().amax(dim=(0, 1, 3, 4))
    assert changed[1] > 1e-3
    assert max(changed[0], changed[2]) < 1e-6


def test_sam2s_weights_fit_a_network_with_maps(nano, hf_folder, slab) -> None:
    switches = {"num_classes": 1, "boundary": False, "srpp": False, "promptable": True}
    networks = [nano(**switches, prompt_maps=maps) for maps in (False, True)]
    given = nothing(1, 2, 1)
    given[:, 0, 0] = torch.tensor([[0.2, 0.2, TOP_LEFT], [0.6, 0.7, BOTTOM_RIGHT]])
    for network in networks:
        load_sam2(network, read_sam2(hf_folder))
    with torch.inference_mode():
        found = [network(slab(depth=2), Prompts(given)).segmentation for network in networks]
    torch.testing.assert_close(*found)
