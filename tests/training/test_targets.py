"""What the losses aim at: classes apart, boundaries by hand, positions along the body in any slab and direction."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed.training.targets import boundary_masks, class_masks, relative_positions


def plane(*rows: str) -> torch.Tensor:
    """A mask (1, 1, 1, H, W) from rows of '.' and '#'."""
    return torch.tensor([[float(mark == "#") for mark in row] for row in rows]).view(1, 1, 1, len(rows), len(rows[0]))


def test_each_class_gets_its_own_mask() -> None:
    labels = torch.tensor([[0, 1], [2, 2]]).view(1, 1, 2, 2)
    masks = class_masks(labels, 3)
    assert masks.shape == (1, 3, 1, 2, 2)
    assert masks.dtype == torch.float32
    expected = [[[0, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]
    assert masks[0, :, 0].tolist() == expected


def test_the_boundary_of_one_pixel_is_its_neighbourhood() -> None:
    mask = plane(".....", ".....", "..#..", ".....", ".....")
    expected = plane(".....", ".###.", ".###.", ".###.", ".....")
    assert torch.equal(boundary_masks(mask), expected)


def test_the_boundary_of_a_square_runs_along_both_sides_of_its_edge() -> None:
    mask = plane(".......", ".......", "..###..", "..###..", "..###..", ".......", ".......")
    expected = plane(".......", ".#####.", ".#####.", ".##.##.", ".#####.", ".#####.", ".......")
    assert torch.equal(boundary_masks(mask), expected)


def test_the_image_border_is_no_boundary() -> None:
    """What lies outside the image is unknown, not background."""
    full = torch.ones(1, 1, 1, 4, 5)
    assert not boundary_masks(full).any()
    left = plane("##...", "##...", "##...", "##...")
    assert torch.equal(boundary_masks(left), plane(".##..", ".##..", ".##..", ".##.."))
    corner = plane("#....", ".....", ".....", ".....")
    assert torch.equal(boundary_masks(corner), plane("##...", "##...", ".....", "....."))


def test_no_mask_no_boundary() -> None:
    assert not boundary_masks(torch.zeros(2, 2, 3, 4, 4)).any()


def test_boundaries_are_in_plane_and_per_class() -> None:
    """A class that fills a slice has no boundary there, whatever lies in the slices beside it and the other class."""
    masks = torch.zeros(1, 2, 3, 5, 5)
    masks[0, 0, 1] = 1
    masks[0, 1, 1, 2, 2] = 1
    boundaries = boundary_masks(masks)
    assert boundaries.shape == masks.shape
    assert not boundaries[0, 0].any()
    assert boundaries[0, 1].sum(dim=(1, 2)).tolist() == [0, 9, 0]


def test_relative_positions_by_hand() -> None:
    forward, gap = torch.tensor([[4, 5, 6], [0, 2, 7]])
    expected = [[[0, 1, 2], [-1, 0, 1], [-2, -1, 0]], [[0, 2, 7], [-2, 0, 5], [-7, -5, 0]]]
    target = relative_positions(torch.stack([forward, gap]))
    assert target.dtype == torch.float32
    assert target.tolist() == expected


@given(
    start=st.integers(0, 50),
    depth=st.integers(1, 12),
    shift=st.integers(-11, 11),
    reverse=st.tuples(st.booleans(), st.booleans()),
)
def test_two_slices_have_the_same_target_in_any_slab_and_direction(
    start: int, depth: int, shift: int, reverse: tuple[bool, bool]
) -> None:
    def pairs(first: int, backwards: bool) -> dict[tuple[int, int], float]:
        order = list(range(first, first + depth))[:: -1 if backwards else 1]
        target = relative_positions(torch.tensor([order]))[0]
        return {(a, b): target[i, j].item() for i, a in enumerate(order) for j, b in enumerate(order)}

    one, other = pairs(start, reverse[0]), pairs(start + shift, reverse[1])
    for pair in one.keys() & other.keys():
        assert one[pair] == other[pair] == pair[1] - pair[0]


@given(depth=st.integers(1, 12), start=st.integers(0, 50))
def test_a_reversed_slab_has_the_forward_matrix_reversed_in_both_axes(depth: int, start: int) -> None:
    positions = torch.arange(start, start + depth).unsqueeze(0)
    assert torch.equal(relative_positions(positions.flip(1)), relative_positions(positions).flip(1, 2))
