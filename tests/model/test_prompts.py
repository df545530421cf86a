"""Prompts by hand and mirrored, and what a network that takes them makes of them: SAM2's own for one class."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed.model.prompts import (
    ABSENT,
    BOTTOM_RIGHT,
    NEGATIVE,
    NOTHING,
    POSITIVE,
    TOP_LEFT,
    Prompts,
    boxes_around,
    boxes_from_labels,
    boxes_from_stack,
    mirrored,
    moved,
    nothing,
)
from sam2_3dmed.model.weights import load_sam2, read_sam2

NO_BOX = torch.tensor([[0.0, 0, NOTHING]] * 2)
ABSENT_CLASS = torch.tensor([[0.0, 0, ABSENT]] * 2)


def box(left: float, top: float, right: float, bottom: float) -> torch.Tensor:
    return torch.tensor([[left, top, TOP_LEFT], [right, bottom, BOTTOM_RIGHT]])


def test_the_centres_of_the_outermost_pixels_as_shares() -> None:
    labels = torch.zeros(4, 10, dtype=torch.int32)
    labels[1, 2] = labels[3, 5] = 7
    labels[0, 9] = 9
    torch.testing.assert_close(
        boxes_around(labels, [7, 8, 9]),
        torch.stack([box(0.25, 0.375, 0.55, 0.875), ABSENT_CLASS, box(0.95, 0.125, 0.95, 0.125)]),
    )


def test_every_slice_for_itself() -> None:
    labels = torch.randint(0, 3, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    boxes = boxes_around(labels, [1, 2])
    assert boxes.shape == (2, 3, 2, 2, 3)
    torch.testing.assert_close(boxes[1, 2], boxes_around(labels[1, 2], [1, 2]))


@given(st.integers(0, 10**6))
def test_mirrored_are_those_of_the_mirrored_slice(seed: int) -> None:
    labels = (torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(seed)) > 0.9).int()
    torch.testing.assert_close(mirrored(boxes_around(labels, [1])), boxes_around(labels.flip(-1), [1]))


def test_points_beside_a_box_are_mirrored_and_moved_and_what_has_no_place_is_not() -> None:
    points = torch.tensor([[0.2, 0.3, POSITIVE], [0.6, 0.7, NEGATIVE], [0, 0, NOTHING], [0, 0, ABSENT]])
    beside = torch.cat([box(0.1, 0.2, 0.4, 0.9), points])
    turned = torch.tensor([[0.8, 0.3, POSITIVE], [0.4, 0.7, NEGATIVE], [0, 0, NOTHING], [0, 0, ABSENT]])
    torch.testing.assert_close(mirrored(beside), torch.cat([box(0.6, 0.2, 0.9, 0.9), turned]))
    torch.testing.assert_close(mirrored(points), turned)  # without a box, the first two stay in their order
    shifted = torch.tensor([[0.3, 0.1, POSITIVE], [0.7, 0.5, NEGATIVE], [0, 0, NOTHING], [0, 0, ABSENT]])
    torch.testing.assert_close(moved(points, down=-0.2, right=0.1), shifted)


def test_on_every_so_many_slices_of_the_volume() -> None:
    labels = torch.ones(2, 3, 5, 4, dtype=torch.int32)
    positions = torch.tensor([[3, 4, 5], [6, 5, 4]])  # the second slab runs backward
    kinds = boxes_from_labels(labels, [1], positions, 2).points[..., 0, 0, 2]
    assert (kinds != NOTHING).tolist() == [[False, True, False], [True, False, True]]
    torch.testing.assert_close(boxes_from_labels(labels, [1], positions, 1).points, boxes_around(labels, [1]))
    stack = (torch.rand(5, 6, 7) * 3).to(torch.uint16)
    expected = boxes_from_labels(stack.int(), [1, 2], torch.arange(5), 2)
    torch.testing.assert_close(boxes_from_stack(stack.numpy(), [1, 2], 2).points, expected.points)


def boxes_of(batch: int, depth: int, num_classes: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(batch, depth, num_classes, 2, 2, generator=torch.Generator().manual_seed(seed)) / 2
    corners[..., 1, :] += corners[..., 0, :]
    kinds = torch.tensor([[float(TOP_LEFT)], [BOTTOM_RIGHT]]).expand(*corners.shape[:-1], 1)
    return torch.cat([corners, kinds], dim=-1)


def test_for_one_class_the_prompts_are_sam2s(nano, upstream, hf_folder) -> None:
    """Theirs takes pixels of the image and adds half of one; points come before the corners there, and after here."""
    network = nano(num_classes=1, boundary=False, srpp=False, promptable=True)
    load_sam2(network, read_sam2(hf_folder))
    decoder, theirs = network.segmentation.mask_decoder, upstream.prompt_encoder
    boxes = boxes_of(2, 1, 1)[:, 0]  # (2, 1, 2, 3)
    points = torch.rand(2, 1, 3, 2)
    kinds = torch.tensor([[[1, 0, 1]], [[0, 1, -1]]])
    masks = (torch.rand(2, 1, 16, 16) > 0.5).float()
    pixels = (points * 64 - 0.5, kinds)
    with torch.inference_mode():
        for given_points, given_boxes, given_masks in (
            (None, boxes, None),
            (pixels, None, None),
            (pixels, boxes, masks),
        ):
            sparse, dense = theirs(
                *(given_points or (None, None)),
                None if given_boxes is None else boxes[..., :2].flatten(-2) * 64 - 0.5,
                None if given_masks is None else masks * 20 - 10,
            )
            parts = [] if given_boxes is None else [boxes]
            if given_points is not None:
                parts.append(torch.cat([points, kinds.unsqueeze(-1)], dim=-1))
            prompts = Prompts(torch.cat(parts, dim=-2), given_masks)
            found, expected = decoder._prompt(2, prompts), sparse.squeeze(1)
            if len(parts) == 2:
                expected = torch.cat([expected[:, 3:5], expected[:, :3], expected[:, 5:]], dim=1)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(decoder._dense_prompt(prompts).expand_as(dense), dense, atol=1e-5, rtol=1e-5)


def test_a_mask_counts_where_it_is_given(nano, slab) -> None:
    network, slices = nano(num_classes=1, memory="none", boundary=False, srpp=False, promptable=True), slab(depth=3)
    masks = torch.zeros(1, 3, 1, 64, 64)
    masks[:, :, :, 10:30, 20:40] = 1
    masks[:, 0] = masks[:, 2] = torch.nan
    points = nothing(1, 3, 1)
    with torch.inference_mode():
        without = network(slices, Prompts(points)).segmentation
        found = network(slices, Prompts(points, masks)).segmentation
        torch.testing.assert_close(network(slices, Prompts(points, masks * torch.nan)).segmentation, without)
    changed = (found - without).abs().amax(dim=(0, 1, 3, 4))
    assert changed[1] > 1e-4
    assert max(changed[0], changed[2]) < 1e-6


@pytest.mark.parametrize("switches", [{}, {"boundary": False, "memory": "self_sorting"}, {"num_classes": 1}])
def test_a_box_reaches_its_slice_and_those_after_it(nano, slab, open_paths, switches: dict) -> None:
    network, slices = open_paths(nano(box_every=2, **switches)), slab(depth=4)
    num_classes = switches.get("num_classes", 2)
    boxes = boxes_of(1, 4, num_classes)
    boxes[:, 0] = boxes[:, 2:] = NO_BOX
    with torch.inference_mode():
        without, empty = network(slices), network(slices, Prompts(nothing(1, 4, num_classes)))
        found = network(slices, Prompts(boxes))
    for theirs, ours in zip(without, empty, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)
    changed = (found.segmentation - without.segmentation).abs().amax(dim=(0, 1, 3, 4))
    assert changed[0] < 1e-5
    assert changed[1] > 1e-4
    assert changed[2:].max() > 1e-4  # a self-sorting bank draws what it reads
    if found.boundary is not None:
        assert (found.boundary - without.boundary).abs()[:, :, 1].max() > 1e-4


@pytest.mark.parametrize("num_classes", [1, 2])
def test_it_matters_whose_box_it_is_and_who_is_absent(nano, slab, num_classes: int) -> None:
    network, slices = nano(num_classes=num_classes, box_every=1), slab(depth=1)
    boxes = boxes_of(1, 1, num_classes)
    of_class_1 = boxes.clone()
    of_class_1[:, :, -1] = ABSENT_CLASS
    absent, unknown = ABSENT_CLASS.expand_as(boxes), nothing(1, 1, num_classes)
    said = [boxes, of_class_1, of_class_1.flip(2), absent, unknown]
    different = {str(each): each for each in (*said, boxes.flip(2))}  # for one class three are
    with torch.inference_mode():
        found = [network(slices, Prompts(each)).segmentation for each in different.values()]
    assert len(found) == {1: 3, 2: 6}[num_classes]
    assert min((a - b).abs().max() for a, b in combinations(found, 2)) > 1e-3


def test_a_batch_is_its_cases_one_by_one_with_boxes_or_without(nano, slab) -> None:
    network, slices, boxes = nano(box_every=2), slab(batch=3, depth=3), boxes_of(3, 3, 2)
    boxes[0], boxes[1, 1, 0], boxes[2, 1] = NO_BOX, NO_BOX, ABSENT_CLASS
    with torch.inference_mode():
        together = network(slices, Prompts(boxes)).segmentation
        for row in range(3):
            alone = network(slices[row : row + 1], Prompts(boxes[row : row + 1])).segmentation
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_boxes_move_with_their_classes() -> None:
    label = torch.zeros(1, 20, 40, dtype=torch.int32)
    label[0, 4:9, 10:30] = 1
    rolled = label.roll((3, -5), dims=(1, 2))
    found = moved(boxes_around(label, [1, 2]), down=3 / 20, right=-5 / 40)
    torch.testing.assert_close(found, boxes_around(rolled, [1, 2]))  # 2 is absent


def test_gradients_reach_the_corners(nano, slab) -> None:
    network, boxes = nano(box_every=1, boundary=False), boxes_of(1, 2, 2)
    boxes[0, 1, 0] = ABSENT_CLASS
    network(slab(depth=2), Prompts(boxes)).segmentation.square().sum().backward()
    decoder = network.segmentation.mask_decoder
    assert decoder.point_embed.weight.grad[2:].abs().sum(dim=1).min() > 0
    for embedding in (decoder.class_box_embed, decoder.class_absent_embed):
        assert embedding.weight.grad.abs().sum() > 0


def test_what_a_network_has_more_of(nano) -> None:
    added = nano(box_every=1).state_dict().keys() - nano().state_dict().keys()
    branches = ("segmentation", "boundary.decoder")
    names = ("point_embed", "class_box_embed", "class_absent_embed")
    assert added == {f"{branch}.mask_decoder.{name}.weight" for branch in branches for name in names}


def test_kept_features_make_the_same_of_a_box(nano, slab) -> None:
    network, slices, boxes = nano(box_every=2), slab(depth=3), boxes_of(1, 3, 2)
    with torch.inference_mode():
        expected = network(slices, Prompts(boxes))
        kept = network.encoder.pre_fpn_features(slices)
        found = network.decode(kept, Prompts(boxes), pre_fpn=True)
        assert (expected.segmentation - network(slices).segmentation).abs().max() > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
