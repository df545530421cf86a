"""The whole network: what starts neutral, what looks ahead, what a batch is, and every ablation's switch."""

import pytest
import torch

from sam2_3dmed.model.network import Prediction

ABLATIONS = {
    "full": {},
    "without SRPP": {"srpp": False},
    "context not shared": {"share_context": False},
    "SRPP with memory": {"srpp_memory": True},
    "without BD": {"boundary": False},
    "without BD-Fusion": {"boundary_fusion": False},
    "residual fusion": {"fusion_residual": True},
    "SAM2 alone": {"srpp": False, "boundary": False},
    "SAM 2.0": {"pointer_time": False},
    "from scratch": {"no_memory_token": True},
    "from scratch, self-sorting memory": {"no_memory_token": True, "memory": "self_sorting"},
    "one class": {"num_classes": 1},
    "five classes": {"num_classes": 5},
}


def assert_same(ours: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("switches", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_every_ablation_runs(nano, slab, switches: dict) -> None:
    network = nano(**switches)
    with torch.inference_mode():
        prediction = network(slab(batch=2, depth=3))
    masks = (2, switches.get("num_classes", 2), 3, 16, 16)
    assert prediction.segmentation.shape == masks
    assert (prediction.boundary is not None) == switches.get("boundary", True)
    assert (prediction.relative_position is not None) == switches.get("srpp", True)
    if prediction.boundary is not None:
        assert prediction.boundary.shape == masks
    if prediction.relative_position is not None:
        assert prediction.relative_position.shape == (2, 3, 3)
    assert all(part.isfinite().all() for part in prediction if part is not None)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_fresh_srpp_and_bd_leave_the_segmentation_as_it_was(nano, slab, num_classes: int, training: bool) -> None:
    full = nano(num_classes=num_classes).train(training)
    plain = nano(num_classes=num_classes, seed=5, srpp=False, boundary=False).train(training)
    result = plain.load_state_dict(full.state_dict(), strict=False)
    assert not result.missing_keys
    assert {name.split(".")[0] for name in result.unexpected_keys} == {"srpp", "boundary", "boundary_to_segmentation"}
    slices = slab(batch=2, depth=4)
    assert_same(full(slices).segmentation, plain(slices).segmentation, atol=1e-6)


def test_moved_srpp_and_bd_change_the_segmentation(nano, slab, move) -> None:
    network, slices = nano(), slab(depth=3)
    before = network(slices).segmentation
    move(network.boundary_to_segmentation)
    with_boundary = network(slices).segmentation
    assert (with_boundary - before).abs().max() > 1e-3
    move(network.srpp.to_context)
    assert (network(slices).segmentation - with_boundary).abs().max() > 1e-3


def later_change(network, slab) -> tuple[Prediction, Prediction]:
    """A prediction of five slices, and one after the last two of them changed."""
    slices = slab(depth=5)
    changed = slices.clone()
    changed[:, 3:] = slab(depth=2, seed=9)
    with torch.inference_mode():
        return network(slices), network(changed)


@pytest.mark.parametrize(
    "switches", [{"srpp": False}, {"share_context": False}, {"srpp_memory": True}], ids=["off", "unshared", "causal"]
)
def test_later_slices_do_not_reach_earlier_ones(nano, slab, open_paths, switches: dict) -> None:
    network = open_paths(nano(**switches))
    one, other = later_change(network, slab)
    for name in ("segmentation", "boundary"):
        before, after = getattr(one, name), getattr(other, name)
        assert_same(after[:, :, :3], before[:, :, :3])
        assert (after[:, :, 3:] - before[:, :, 3:]).abs().max() > 1e-2
    if network.srpp is not None and network.srpp.causal:
        assert_same(other.relative_position[:, :3, :3], one.relative_position[:, :3, :3])


def test_the_shared_context_looks_both_ways(nano, slab, open_paths) -> None:
    one, other = later_change(open_paths(nano()), slab)
    assert (other.segmentation[:, :, :3] - one.segmentation[:, :, :3]).abs().max() > 1e-3


def test_earlier_slices_reach_later_ones(nano, slab) -> None:
    network = nano(srpp=False, boundary=False)
    slices = slab(depth=3)
    with torch.inference_mode():
        alone = network(slices[:, 2:]).segmentation
        assert (network(slices).segmentation[:, :, 2:] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("switches", [{}, {"srpp_memory": True}, {"num_classes": 1, "boundary_fusion": False}])
def test_a_batch_is_its_cases_one_by_one(nano, slab, open_paths, switches: dict) -> None:
    network = open_paths(nano(**switches))
    slices = slab(batch=3, depth=3)
    with torch.inference_mode():
        batch = network(slices)
        for b in range(3):
            for together, alone in zip(batch, network(slices[b : b + 1]), strict=True):
                assert_same(together[b : b + 1], alone)


def test_training_mode_computes_what_evaluation_does(nano, slab, open_paths) -> None:
    """No dropout and no batch statistics anywhere."""
    network = open_paths(nano())
    slices = slab(batch=2, depth=3)
    with torch.no_grad():
        trained, evaluated = network.train()(slices), network.eval()(slices)
    for a, b in zip(trained, evaluated, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("depth", [1, 2, 20])
def test_any_number_of_slices(nano, slab, open_paths, depth: int) -> None:
    network = open_paths(nano())
    with torch.inference_mode():
        prediction = network(slab(depth=depth))
    assert prediction.segmentation.shape[2] == prediction.boundary.shape[2] == depth
    assert prediction.relative_position.shape == (1, depth, depth)
    assert all(part.isfinite().all() for part in prediction)


def test_the_input_may_have_any_size_in_plane(nano) -> None:
    with torch.inference_mode():
        assert nano()(torch.rand(1, 2, 3, 35, 51)).segmentation.shape == (1, 2, 2, 16, 16)


def test_both_branches_remember_raw_features_and_their_own_masks(nano, slab, open_paths) -> None:
    """Memory encoders take Z, not the context or what fusion made of it, as SAM2's do (reading 3)."""
    network, slices = open_paths(nano()), slab(depth=3)
    seen = {"segmentation": [], "boundary": []}
    for name, decoder in (("segmentation", network.segmentation), ("boundary", network.boundary.decoder)):

        def spy(z, found, attended, *, name=name, remember=decoder.encode_memory):
            seen[name].append((z, found.logits))
            return remember(z, found, attended)

        decoder.encode_memory = spy
    with torch.inference_mode():
        features = network.encoder(slices)
        prediction = network.decode(features)
    for name, calls in seen.items():
        assert len(calls) == 2  # nobody would read the last slice's memory
        for i, (z, logits) in enumerate(calls):
            assert torch.equal(z, features.z[:, i])
            assert torch.equal(logits, getattr(prediction, name)[:, :, i])


def test_training_goes_on_after_validation(nano, slab) -> None:
    """Upstream keeps its last positional code: one made in inference mode must not break the next backward."""
    network, slices = nano(), slab(depth=2)
    with torch.inference_mode():
        network.eval()(slices)
    prediction = network.train()(slices)
    (prediction.segmentation.mean() + prediction.boundary.mean()).backward()
    assert network.segmentation.no_memory_embedding.grad is not None


def test_compact_features_decode_to_the_same(nano, slab, open_paths) -> None:
    """Two 1 x 1 convolutions in one are the same numbers; with all digits, so that only the order of sums differs."""
    network = open_paths(nano()).double()
    network.encoder.freeze()
    slices = slab().double()
    found, expected = network.decode(network.encoder.pre_fpn_features(slices), pre_fpn=True), network(slices)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
