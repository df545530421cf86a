"""Every loss by hand on tensors small enough for it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed.config import LossConfig
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.network import Prediction
from sam2_3dmed.training.losses import TERMS, LossInputs, TotalLoss, class_masks
from sam2_3dmed.training.losses.boundary import boundary_loss, boundary_masks
from sam2_3dmed.training.losses.relative_position import position_error, relative_position_loss, relative_positions
from sam2_3dmed.training.losses.segmentation import bce, dice_loss, focal, focal_tversky

NORMALISE = ("weight_sum", "mean", "sum")


def value(loss: torch.Tensor) -> float:
    assert loss.shape == ()
    return loss.item()


def volume(*values: float) -> torch.Tensor:
    """(1, 1, 1, 1, W)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_eq_2_divides_by_d_times_d_minus_1() -> None:
    target = torch.tensor([[0.0, 1, 2], [-1, 0, 1], [-2, -1, 0]]).unsqueeze(0)
    # Predicting zero at D = 3: 4 pairs off by 1 and 2 by 2, so (4 + 8) / 6.
    assert value(relative_position_loss(torch.zeros(1, 3, 3), target)) == pytest.approx(2)
    assert value(relative_position_loss(target, target)) == 0


def test_eq_2_ignores_the_diagonal() -> None:
    predicted = torch.tensor([[[100.0, 1.5], [-1.0, -100.0]]])
    target = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    assert value(relative_position_loss(predicted, target)) == pytest.approx(0.25 / 2)


def test_eq_2_is_the_mean_over_the_batch() -> None:
    predicted = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 3.0)])
    assert value(relative_position_loss(predicted, torch.zeros(2, 2, 2))) == pytest.approx((1 + 9) / 2)


def test_the_position_error_is_in_slices_and_ignores_the_diagonal() -> None:
    target = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]], [[0.0, -2.0], [2.0, 0.0]]])
    predicted = target + torch.tensor([[[9.0, 0.5], [-1.5, 9.0]], [[9.0, 3.0], [-3.0, 9.0]]])
    assert position_error(predicted, target).item() == pytest.approx((0.5 + 1.5 + 3 + 3) / 4)


def test_eq_2_of_a_lone_slice_is_zero_and_differentiable() -> None:
    predicted = torch.tensor([[[3.0]]], requires_grad=True)
    loss = relative_position_loss(predicted, torch.zeros(1, 1, 1))
    assert value(loss) == 0
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.item() == 0


# One boundary pixel of four: it weighs N_non / N = 3/4, the three others N_bd / N = 1/4. Probabilities by hand.
BOUNDARY = volume(1, 0, 0, 0)
PROBABILITIES = (0.5, 0.5, 0.2, 0.2)
WEIGHTED = 0.75 * math.log(2) + 0.25 * (math.log(2) - 2 * math.log(0.8))


@pytest.mark.parametrize(("normalise", "divisor"), [("weight_sum", 0.75 + 3 * 0.25), ("mean", 4), ("sum", 1)])
def test_eq_5_by_hand(normalise: str, divisor: float) -> None:
    logits = volume(*(logit(p) for p in PROBABILITIES))
    assert value(boundary_loss(logits, BOUNDARY, normalise)) == pytest.approx(WEIGHTED / divisor, rel=1e-5)


def test_eq_5_is_divided_by_the_sum_of_weights_unless_told_otherwise() -> None:
    logits = volume(*(logit(p) for p in PROBABILITIES))
    assert torch.equal(boundary_loss(logits, BOUNDARY), boundary_loss(logits, BOUNDARY, "weight_sum"))


def test_eq_5_balances_the_two_kinds() -> None:
    """Divided by the sum of weights, it is the mean of the two kinds' mean cross entropies."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 3, 5, 5)
    target = (torch.rand(1, 1, 3, 5, 5) < 0.1).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = (entropy[target > 0].mean() + entropy[target == 0].mean()) / 2
    assert value(boundary_loss(logits, target)) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("depth_of_boundary", [0, 1])
def test_eq_5_counts_per_sample_and_class_over_the_slab(normalise: str, depth_of_boundary: int) -> None:
    """A batch of two and two classes is the mean of its four volumes, each weighed by its own counts."""
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 2, 3, 3)
    target = (torch.rand(2, 2, 2, 3, 3) < 0.4).float()
    target[..., depth_of_boundary, :, :] = 0  # all of it in one slice
    alone = [
        boundary_loss(logits[b, k][None, None], target[b, k][None, None], normalise) for b in (0, 1) for k in (0, 1)
    ]
    assert value(boundary_loss(logits, target, normalise)) == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_class_without_boundary_contributes_zero(normalise: str) -> None:
    logits = torch.full((1, 2, 1, 1, 4), 3.0, requires_grad=True)
    with torch.no_grad():
        target = torch.cat([BOUNDARY, torch.zeros_like(BOUNDARY)], dim=1)
    loss = boundary_loss(logits, target, normalise)
    assert value(loss) == pytest.approx(boundary_loss(logits[:, :1], BOUNDARY, normalise).item() / 2, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 1].any()


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_all_or_nothing_boundaries_are_finite(normalise: str, everywhere: float) -> None:
    """Eq. 5 gives the only kind there is the weight 0."""
    logits = torch.randn(1, 1, 1, 2, 2, requires_grad=True)
    loss = boundary_loss(logits, torch.full((1, 1, 1, 2, 2), everywhere), normalise)
    assert value(loss) == 0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_bce_by_hand() -> None:
    logits = volume(logit(0.8), logit(0.1), 0.0)
    expected = -(math.log(0.8) + math.log(0.9) + math.log(0.5)) / 3
    assert value(bce(logits, volume(1, 0, 1))) == pytest.approx(expected, rel=1e-5)


def test_dice_by_hand() -> None:
    """Probabilities 0.8 and 0.4 against 1 and 0: overlap 0.8, sizes 1.2 and 1, both smoothed by 1."""
    logits = volume(logit(0.8), logit(0.4))
    assert value(dice_loss(logits, volume(1, 0))) == pytest.approx(1 - 2.6 / 3.2, rel=1e-5)


def test_dice_counts_each_sample_and_class_over_the_whole_slab() -> None:
    """(B, K) = (1, 2), D = 2: class 1 perfect, class 2 missed whole, its four voxels in both slices."""
    logits = torch.full((1, 2, 2, 1, 2), 100.0)
    logits[:, 1] = -100
    target = torch.ones(1, 2, 2, 1, 2)
    assert value(dice_loss(logits, target)) == pytest.approx((0 + (1 - 1 / 5)) / 2)


def test_dice_of_an_absent_class_that_is_not_found_is_perfect() -> None:
    assert value(dice_loss(volume(-100, -100), volume(0, 0))) == pytest.approx(0, abs=1e-6)


def test_focal_by_hand() -> None:
    """alpha 1/4, gamma 2."""
    logits, target = volume(logit(0.8), logit(0.4)), volume(1, 0)
    foreground = 0.25 * 0.2**2 * -math.log(0.8)
    background = 0.75 * 0.4**2 * -math.log(0.6)
    assert value(focal(logits, target)) == pytest.approx((foreground + background) / 2, rel=1e-5)


def test_focal_tversky_by_hand() -> None:
    """Probabilities 0.8, 0.5 and 0.4 against 1, 1 and 0: hit 1.3, missed 0.7, spurious 0.4; the power 3/4."""
    logits, target = volume(logit(0.8), logit(0.5), logit(0.4)), volume(1, 1, 0)
    index = (1.3 + 1) / (1.3 + 0.7 * 0.7 + 0.3 * 0.4 + 1)
    assert value(focal_tversky(logits, target)) == pytest.approx((1 - index) ** 0.75, rel=1e-5)


def test_focal_tversky_with_equal_weights_and_no_power_is_dice() -> None:
    """With weights of 1/2, TI = (2 TP + 2) / (sizes + 2)."""
    logits, target = volume(logit(0.8), logit(0.4)), volume(1, 0)
    expected = 1 - (2 * 0.8 + 2) / (1.2 + 1 + 2)
    assert value(focal_tversky(logits, target, 0.5, 0.5, 1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_focal_tversky_of_a_perfect_mask_has_finite_gradients(everywhere: float) -> None:
    """Of an absent class, too."""
    logits = torch.full((1, 1, 2, 4, 4), 200 * everywhere - 100, requires_grad=True)
    loss = focal_tversky(logits, torch.full((1, 1, 2, 4, 4), everywhere))
    assert value(loss) == pytest.approx(0, abs=1e-4)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [bce, dice_loss, focal, focal_tversky])
def test_a_better_segmentation_costs_less(loss) -> None:
    target = volume(1, 1, 0, 0)
    sign = target * 2 - 1
    costs = [value(loss(scale * sign, target)) for scale in (-3.0, 0.0, 3.0, 30.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 1e-3


def batch() -> tuple[Prediction, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    masks = torch.zeros(2, 2, 3, 16, 16)
    masks[:, 0, :, 4:9, 3:11] = 1
    masks[:, 1, 1, 2:5, 8:12] = 1
    logits, boundary = torch.randn(2, 2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4)
    return Prediction(logits, boundary, torch.randn(2, 3, 3)), masks, torch.tensor([[5, 6, 7], [9, 8, 7]])


@given(weights=st.dictionaries(st.sampled_from(sorted(TERMS)), st.floats(0, 10), min_size=1))
def test_the_total_is_the_weighted_sum(weights: dict[str, float]) -> None:
    found = TotalLoss(LossConfig(terms=weights))(*batch())
    assert found.keys() == {"total", *weights}
    expected = sum(weight * found[name] for name, weight in weights.items())
    torch.testing.assert_close(found["total"], torch.as_tensor(expected))


@pytest.mark.parametrize("normalise", NORMALISE)
def test_the_terms_are_the_losses_at_full_resolution(normalise: str) -> None:
    prediction, masks, positions = batch()

    def full(logits: torch.Tensor) -> torch.Tensor:
        planes = [torch.nn.functional.interpolate(x, (16, 16), mode="bilinear") for x in logits.unbind(2)]
        return torch.stack(planes, dim=2)

    config = LossConfig(terms=dict.fromkeys(TERMS, 1), boundary_normalise=normalise)
    terms = TotalLoss(config)(prediction, masks, positions)
    for name, loss in {"bce": bce, "dice": dice_loss, "focal": focal, "focal_tversky": focal_tversky}.items():
        torch.testing.assert_close(terms[name], loss(full(prediction.segmentation), masks))
    expected = boundary_loss(full(prediction.boundary), boundary_masks(masks), normalise)
    torch.testing.assert_close(terms["boundary"], expected)
    expected = relative_position_loss(prediction.relative_position, relative_positions(positions))
    torch.testing.assert_close(terms["relative_position"], expected)


@pytest.mark.parametrize("gone", ["boundary", "relative_position"])
def test_a_part_that_is_off_costs_nothing(gone: str) -> None:
    prediction, masks, positions = batch()
    total = TotalLoss(LossConfig(terms={"bce": 1, "relative_position": 2, "boundary": 3}))
    whole, without = total(prediction, masks, positions), total(prediction._replace(**{gone: None}), masks, positions)
    assert value(without[gone]) == 0
    weight = {"boundary": 3, "relative_position": 2}[gone]
    torch.testing.assert_close(without["total"], whole["total"] - weight * whole[gone])


def test_half_precision_logits_are_compared_in_full() -> None:
    prediction, masks, positions = batch()
    halves = Prediction(*(part.bfloat16() for part in prediction))
    found = TotalLoss(LossConfig())(halves, masks, positions)
    assert all(term.dtype == torch.float32 for term in found.values())


def test_a_file_registers_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "volume", lambda inputs: inputs.segmentation.sigmoid().mean())
    prediction, masks, positions = batch()
    found = TotalLoss(LossConfig(terms={"volume": 2}))(prediction, masks, positions)
    inputs = LossInputs(prediction, masks, positions, LossConfig())
    torch.testing.assert_close(found["total"], 2 * inputs.segmentation.sigmoid().mean())


def test_an_unknown_term_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^loss\.terms: no term 'bec'; did you mean 'bce'\?$"):
        TotalLoss(LossConfig(terms={"bec": 1}))


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
