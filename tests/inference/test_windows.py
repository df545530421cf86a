"""Windows cover every slice, blend as told, and hold no more than they must."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sam2_3dmed.inference import windows as windows_module
from sam2_3dmed.inference.windows import (
    FeatureWindow,
    SliceBlender,
    Window,
    blend_weights,
    plan_windows,
    window_logits,
)
from sam2_3dmed.model.encoder import Features
from sam2_3dmed.model.network import Prediction


class Told(nn.Module):
    """In place of a network: a slice's features are its mean, and its logits what `say` makes of features (B, D)."""

    def __init__(self, say=lambda values: values) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.say = say
        self.encoded: list[int] = []
        self.decoded: list[list[int]] = []

    def encoder(self, slices):
        values = slices.mean(dim=(2, 3, 4))
        self.encoded += values.flatten().round().int().tolist()
        level = values[..., None, None, None]
        return Features(level, level * 10, level * 100)

    def decode(self, features):
        assert torch.equal(features.stride8, features.z * 10)
        assert torch.equal(features.stride4, features.z * 100)
        values = features.z[..., 0, 0, 0]
        self.decoded += values.round().int().tolist()
        logits = self.say(values)[:, None, :, None, None].expand(-1, 2, -1, 3, 3)
        return Prediction(logits, None, None)


def stack(depth, dtype=np.float32):
    """Slices (N, 1, 4, 4), each full of its own index."""
    return np.broadcast_to(np.arange(depth, dtype=dtype)[:, None, None, None], (depth, 1, 4, 4))


def blended(network, depth, *, window_slices=4, overlap=0.5, direction="both", batch_size=4):
    """(N,) the logits of a network that says the same everywhere in a slice."""
    found = window_logits(
        network,
        stack(depth),
        window_slices=window_slices,
        overlap=overlap,
        direction=direction,
        batch_size=batch_size,
    )
    logits = torch.stack(list(found))
    assert logits.shape[1:] == (2, 3, 3)
    assert torch.equal(logits, logits[:, :1, :1, :1].expand_as(logits))
    return logits[:, 0, 0, 0]


class TestPlan:
    @given(
        depth=st.integers(1, 60),
        window_slices=st.integers(1, 12),
        overlap=st.floats(0, 0.99),
        direction=st.sampled_from(["forward", "backward", "both"]),
    )
    def test_laws(self, depth, window_slices, overlap, direction):
        plan = plan_windows(depth, window_slices, overlap, direction)
        starts = sorted({w.start for w in plan})
        assert {w.length for w in plan} == {min(depth, window_slices)}
        assert {i for w in plan for i in w.order} == set(range(depth))
        assert starts[0] == 0
        assert starts[-1] + plan[0].length == depth
        assert [w.start for w in plan] == sorted(w.start for w in plan)
        assert len(set(plan)) == len(plan) == len(starts) * (2 if direction == "both" else 1)
        assert {w.reverse for w in plan} == {"forward": {False}, "backward": {True}, "both": {False, True}}[direction]

    @pytest.mark.parametrize(
        ("depth", "window_slices", "overlap", "starts"),
        [
            (10, 4, 0.5, [0, 2, 4, 6]),
            (11, 4, 0.5, [0, 2, 4, 6, 7]),
            (8, 4, 0.0, [0, 4]),
            (9, 4, 0.0, [0, 4, 5]),
            (6, 4, 0.75, [0, 1, 2]),
            (6, 4, 0.99, [0, 1, 2]),
            (4, 4, 0.5, [0]),
            (3, 4, 0.5, [0]),
            (3, 1, 0.5, [0, 1, 2]),
            (1, 4, 0.5, [0]),
        ],
    )
    def test_by_hand(self, depth, window_slices, overlap, starts):
        assert [w.start for w in plan_windows(depth, window_slices, overlap, "forward")] == starts

    def test_order(self):
        assert Window(3, 4, reverse=False).order == [3, 4, 5, 6]
        assert Window(3, 4, reverse=True).order == [6, 5, 4, 3]


@pytest.mark.parametrize(
    ("length", "weights"), [(1, [1]), (2, [2 / 3, 2 / 3]), (3, [0.5, 1, 0.5]), (4, [0.4, 0.8, 0.8, 0.4])]
)
def test_blend_weights_by_hand(length, weights):
    assert blend_weights(length) == pytest.approx(weights)


def test_blender_is_the_weighted_mean_and_forgets():
    blender = SliceBlender()
    blender.add(3, torch.tensor([[[1.0]]]), 0.5)
    blender.add(3, torch.tensor([[[4.0]]], dtype=torch.bfloat16), 1.0)
    blender.add(4, torch.tensor([[[7.0]]]), 0.25)
    taken = blender.take(3)
    assert taken.item() == pytest.approx(3.0)
    assert taken.dtype == torch.float32
    assert blender.take(4).item() == pytest.approx(7.0)
    with pytest.raises(KeyError):
        blender.take(3)


class TestBlending:
    @pytest.mark.parametrize("direction", ["forward", "backward", "both"])
    @pytest.mark.parametrize(("depth", "overlap"), [(1, 0.5), (3, 0.5), (4, 0.5), (13, 0.5), (23, 0.8), (9, 0.0)])
    def test_what_all_windows_agree_on_is_kept_in_its_place(self, depth, overlap, direction):
        result = blended(Told(), depth, overlap=overlap, direction=direction)
        torch.testing.assert_close(result, torch.arange(float(depth)))

    def test_disagreement_by_hand(self):
        """Windows 0-2 and 1-3 say their own place 0, 1, 2, weighted 1, 2, 1."""
        place = Told(lambda values: torch.arange(3.0).expand_as(values))
        forward = blended(place, 4, window_slices=3, overlap=0.6, direction="forward")
        assert forward.tolist() == pytest.approx([0, (2 * 1 + 1 * 0) / 3, (1 * 2 + 2 * 1) / 3, 2])
        backward = blended(place, 4, window_slices=3, overlap=0.6, direction="backward")
        assert backward.tolist() == pytest.approx([2, (2 * 1 + 1 * 2) / 3, (1 * 0 + 2 * 1) / 3, 0])

    def test_both_is_the_mean_of_the_two(self):
        place = Told(lambda values: torch.linspace(0, 1, values.shape[1]).expand_as(values) ** 2)
        one, two, both = (blended(place, 11, direction=d) for d in ("forward", "backward", "both"))
        assert not torch.allclose(one, two)
        torch.testing.assert_close(both, (one + two) / 2)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
    def test_any_batch_gives_the_same(self, batch_size):
        place = Told(lambda values: values + torch.arange(values.shape[1]))
        expected = blended(place, 17, overlap=0.7, batch_size=1)
        torch.testing.assert_close(blended(place, 17, overlap=0.7, batch_size=batch_size), expected)

    @pytest.mark.parametrize("direction", ["forward", "backward", "both"])
    def test_the_network_sees_windows_in_their_direction(self, direction):
        network = Told()
        blended(network, 6, direction=direction)
        forward, backward = [[0, 1, 2, 3], [2, 3, 4, 5]], [[3, 2, 1, 0], [5, 4, 3, 2]]
        both = [forward[0], backward[0], forward[1], backward[1]]
        assert network.decoded == {"forward": forward, "backward": backward, "both": both}[direction]


class TestFeatures:
    @pytest.mark.parametrize(("depth", "batch_size"), [(1, 1), (3, 4), (30, 1), (31, 3), (40, 100)])
    def test_every_slice_is_encoded_once(self, depth, batch_size):
        network = Told()
        blended(network, depth, batch_size=batch_size, overlap=0.75)
        assert network.encoded == list(range(depth))

    def test_gather_follows_each_windows_order(self):
        features = FeatureWindow(Told(), stack(9), chunk=2)
        z, stride8, stride4 = features.gather([Window(1, 3, reverse=False), Window(4, 3, reverse=True)])
        assert z[..., 0, 0, 0].tolist() == [[1, 2, 3], [6, 5, 4]]
        assert torch.equal(stride8, 10 * z)
        assert torch.equal(stride4, 100 * z)

    def test_a_read_only_memory_map_will_do(self, tmp_path):
        np.save(tmp_path / "slices.npy", stack(5))
        slices = np.load(tmp_path / "slices.npy", mmap_mode="r")
        features = FeatureWindow(Told(), slices).gather([Window(0, 5, reverse=False)])
        assert features.z.flatten().tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
    def test_other_types_and_views_will_do(self, dtype):
        features = FeatureWindow(Told(), stack(5, dtype)[::-1]).gather([Window(0, 5, reverse=False)])
        assert features.z.flatten().tolist() == [4, 3, 2, 1, 0]
        assert features.z.dtype == torch.float32


class TestMemory:
    """What is held of features and logits while a long stack passes."""

    @pytest.fixture
    def parts(self, monkeypatch):
        made = {}
        for name in ("FeatureWindow", "SliceBlender"):
            kind = getattr(windows_module, name)

            def make(*arguments, name=name, kind=kind):
                made[name] = kind(*arguments)
                return made[name]

            monkeypatch.setattr(windows_module, name, make)
        return made

    @pytest.mark.parametrize("direction", ["forward", "both"])
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_finished_slices_are_let_go(self, parts, direction, batch_size):
        window_slices, stride = 6, 3
        logits = window_logits(
            Told(),
            stack(200),
            window_slices=window_slices,
            overlap=0.5,
            direction=direction,
            batch_size=batch_size,
        )
        reach = window_slices + stride * batch_size  # a batch and what the one before it left
        for index, _ in enumerate(logits):
            features, blender = parts["FeatureWindow"], parts["SliceBlender"]
            assert len(features._features) <= reach
            assert len(blender._sums) == len(blender._weights) <= reach
            assert index not in blender._sums
        assert not features._features
        assert not blender._sums

    def test_slices_come_as_soon_as_no_window_needs_them(self):
        network = Told()
        logits = window_logits(network, stack(100), window_slices=4, overlap=0.5, direction="forward", batch_size=1)
        next(logits)
        assert max(network.encoded) == 3
        next(logits)
        next(logits)
        assert max(network.encoded) == 5


class TestRealNetwork:
    @pytest.mark.parametrize("depth", [1, 3, 7])
    def test_batches_change_nothing(self, network, depth):
        slices = np.random.default_rng(0).random((depth, 1, 20, 30), dtype=np.float32)
        one, many = (self._run(network, slices, batch_size) for batch_size in (1, 5))
        assert one.shape == (depth, 2, 16, 16)
        torch.testing.assert_close(many, one, atol=1e-4, rtol=1e-4)

    def test_one_window_is_the_network_itself(self, network):
        slices = np.random.default_rng(1).random((3, 1, 20, 30), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(slices).unsqueeze(0)).segmentation[0].transpose(0, 1)
        found = self._run(network, slices, 1, direction="forward", window_slices=8)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @staticmethod
    def _run(network, slices, batch_size, direction="both", window_slices=4):
        with torch.inference_mode():
            found = window_logits(
                network,
                slices,
                window_slices=window_slices,
                overlap=0.5,
                direction=direction,
                batch_size=batch_size,
            )
            return torch.stack(list(found))
