"""SRPP sees content, not order: what permuting, sharing, causality and a lone slice must do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_3dmed.model.srpp import SliceRelativePositionPredictor

CHANNELS = 16
MODES = pytest.mark.parametrize("training", [True, False])


def srpp_of(move=None, *, training: bool = False, **switches) -> SliceRelativePositionPredictor:
    torch.manual_seed(0)
    srpp = SliceRelativePositionPredictor(CHANNELS, **switches).train(training)
    if move is not None:
        move(srpp.to_context)
    return srpp


def features(depth: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, depth, CHANNELS, 2, 3, generator=torch.Generator().manual_seed(depth))


@MODES
@pytest.mark.parametrize("graph", [True, False])
@given(order=st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_permuting_slices_permutes_positions_and_context(training: bool, graph: bool, order: list[int]) -> None:
    torch.manual_seed(1)
    srpp = srpp_of(training=training)
    torch.nn.init.normal_(srpp.to_context.weight)
    z = features()
    with torch.set_grad_enabled(graph):
        context, positions = srpp(z)
        context_permuted, positions_permuted = srpp(z[:, order])
    torch.testing.assert_close(positions_permuted, positions[:, order][:, :, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context_permuted, context[:, order], atol=1e-5, rtol=1e-4)


def test_a_causal_one_knows_the_order(move) -> None:
    srpp = srpp_of(move, causal=True)
    z = features()
    context, positions = srpp(z)
    context_flipped, positions_flipped = srpp(z.flip(1))
    assert (context_flipped.flip(1) - context).abs().max() > 1e-3
    assert (positions_flipped.flip(1, 2) - positions).abs().max() > 1e-4


@MODES
def test_a_causal_slice_ignores_later_ones(move, training: bool) -> None:
    srpp = srpp_of(move, causal=True, training=training)
    z = features()
    changed = z.clone()
    changed[:, 3:] += 1
    context, positions = srpp(z)
    context_changed, positions_changed = srpp(changed)
    torch.testing.assert_close(context_changed[:, :3], context[:, :3])
    torch.testing.assert_close(positions_changed[:, :3, :3], positions[:, :3, :3])
    assert (context_changed[:, 3:] - context[:, 3:]).abs().max() > 0.1


def test_without_causality_every_slice_sees_every_other(move) -> None:
    srpp = srpp_of(move)
    z = features().requires_grad_()
    encoded = srpp.slice_encoder(z[:1].permute(0, 3, 4, 1, 2).flatten(0, 2))
    (gradient,) = torch.autograd.grad(encoded[:, 0].square().sum(), z)
    assert (gradient[0].abs().sum(dim=(1, 2, 3)) > 0).all()


def test_places_do_not_mix(move) -> None:
    """The Transformer attends over slices at each place alone: only that place's context changes."""
    srpp = srpp_of(move)
    z = features()
    changed = z.clone()
    changed[:, 2, :, 1, 2] += 1
    difference = (srpp(changed)[0] - srpp(z)[0]).abs().amax(dim=(0, 1, 2))
    assert difference[1, 2] > 1e-3
    difference[1, 2] = 0
    assert difference.max() < 1e-5


def test_the_context_starts_as_z() -> None:
    srpp = srpp_of()
    assert not srpp.to_context.weight.any()
    assert not srpp.to_context.bias.any()
    z = features()
    assert torch.equal(srpp(z)[0], z)


def test_a_moved_context_is_z_plus_the_convolved_encoding(move) -> None:
    srpp = srpp_of(move)
    z = features(depth=3, batch=1)
    context, _ = srpp(z)
    place = srpp.slice_encoder(z[:, :, :, 1, 2])  # (1, D, C) at one place
    expected = z[:, :, :, 1, 2] + place @ srpp.to_context.weight[:, :, 0, 0].T + srpp.to_context.bias
    torch.testing.assert_close(context[:, :, :, 1, 2], expected, atol=1e-5, rtol=1e-4)


@MODES
def test_an_unshared_context_is_z_itself(training: bool) -> None:
    srpp = srpp_of(training=training, share_context=False)
    assert srpp.to_context is None
    z = features()
    assert srpp(z)[0] is z


@MODES
@pytest.mark.parametrize("causal", [False, True])
def test_a_lone_slice(move, training: bool, causal: bool) -> None:
    context, positions = srpp_of(move, training=training, causal=causal)(features(depth=1))
    assert positions.shape == (2, 1, 1)
    assert context.shape == (2, 1, CHANNELS, 2, 3)
    assert positions.isfinite().all()


@pytest.mark.parametrize("depth", [2, 6, 12])
def test_any_depth(depth: int) -> None:
    assert srpp_of()(features(depth=depth))[1].shape == (2, depth, depth)


def test_entry_i_j_reads_slice_i_first() -> None:
    """P_pos[i, j] = MLP([u_i, u_j])."""
    srpp = srpp_of()
    z = features(depth=3, batch=1)
    places = srpp.slice_encoder(z.permute(0, 3, 4, 1, 2).flatten(0, 2))
    u = places.mean(dim=0)
    expected = srpp.pair_mlp(torch.cat([u[2], u[0]]))
    torch.testing.assert_close(srpp(z)[1][0, 2, 0], expected[0], atol=1e-5, rtol=1e-4)


def test_training_and_evaluation_agree(move) -> None:
    """No dropout, and torch's fast path for inference computes the same."""
    z = features()
    trained = srpp_of(move, training=True)(z)
    with torch.inference_mode():
        evaluated = srpp_of(move)(z)
    for a, b in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("switches", [{}, {"causal": True}, {"share_context": False}])
def test_a_lone_slice_takes_the_short_way_to_the_same(switches: dict[str, bool]) -> None:
    def grown() -> SliceRelativePositionPredictor:
        srpp = srpp_of(training=True, **switches)
        for parameter in srpp.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return srpp

    torch.manual_seed(2)
    short, whole = grown(), grown()
    whole.load_state_dict(short.state_dict())
    whole._encode_alone = whole.slice_encoder  # the Transformer as torch has it
    for srpp in (short, whole):
        context, positions = srpp(features(1))
        (context.square().sum() + positions.square().sum()).backward()
    torch.testing.assert_close(short(features(1)), whole(features(1)))
    for (name, one), other in zip(short.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
