"""Slabs cover every slice, blend as told, and hold no more than they must."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.encoders.image_encoder import Features
from sam2_3dmed.inference import slabs as slabs_module
from sam2_3dmed.inference.slabs import (
    FeatureBuffer,
    Slab,
    SliceBlender,
    blend_weights,
    plan_slabs,
    slab_logits,
    slabs_that_fit,
)
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures, Prediction

FLOAT32 = InferenceConfig(precision="32")


class Means:
    """In place of an encoder: a slice's features are its mean."""

    image_size = 256  # two of them at once

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def __call__(self, slices):
        values = slices.mean(dim=(2, 3, 4))
        self.encoded += values.flatten().round().int().tolist()
        level = values[..., None, None, None]
        return Features(level, level * 10, level * 100)


class Told(nn.Module):
    """In place of a network: a slice's logits are what `say` makes of features (B, D)."""

    device = torch.device("cpu")
    has_memory = True

    def __init__(self, say=lambda values: values, most_slabs=1000) -> None:
        super().__init__()
        self.encoder = Means()
        self.say = say
        self.most_slabs = most_slabs
        self.decoded: list[list[int]] = []

    @property
    def encoded(self):
        return self.encoder.encoded

    def project(self, features):
        return DecoderFeatures(*features)

    def decode_slabs(self, features):
        if len(features.z) > self.most_slabs:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        assert torch.equal(features.stride8, features.z * 10)
        assert torch.equal(features.stride4, features.z * 100)
        values = features.z[..., 0, 0, 0]
        self.decoded += values.round().int().tolist()
        logits = self.say(values)[:, None, :, None, None].expand(-1, 2, -1, 3, 3)
        return Prediction(logits, None, None)


def stack(depth, dtype=np.float32):
    """Slices (N, 1, 4, 4), each full of its own index."""
    return np.broadcast_to(np.arange(depth, dtype=dtype)[:, None, None, None], (depth, 1, 4, 4))


def blended(network, depth, *, slab_slices=4, overlap=0.5, direction="both", batch_size=4):
    """(N,) the logits of a network that says the same everywhere in a slice."""
    config = InferenceConfig(overlap=overlap, direction=direction, batch_size=batch_size, precision="32")
    found = slab_logits(Forward(network, stack(depth), config), slab_slices)
    indices, slices = zip(*found, strict=True)
    assert indices == tuple(range(depth))
    logits = torch.stack(slices)
    assert logits.shape[1:] == (2, 3, 3)
    assert torch.equal(logits, logits[:, :1, :1, :1].expand_as(logits))
    return logits[:, 0, 0, 0]


class TestPlan:
    @given(
        depth=st.integers(1, 60),
        slab_slices=st.integers(1, 12),
        overlap=st.floats(0, 0.99),
        direction=st.sampled_from(["forward", "backward", "both"]),
    )
    def test_laws(self, depth, slab_slices, overlap, direction):
        plan = plan_slabs(depth, slab_slices, overlap, direction)
        starts = sorted({w.start for w in plan})
        assert {w.length for w in plan} == {min(depth, slab_slices)}
        assert {i for w in plan for i in w.order} == set(range(depth))
        assert starts[0] == 0
        assert starts[-1] + plan[0].length == depth
        assert [w.start for w in plan] == sorted(w.start for w in plan)
        assert len(set(plan)) == len(plan) == len(starts) * (2 if direction == "both" else 1)
        assert {w.reverse for w in plan} == {"forward": {False}, "backward": {True}, "both": {False, True}}[direction]

    @pytest.mark.parametrize(
        ("depth", "slab_slices", "overlap", "starts"),
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
    def test_by_hand(self, depth, slab_slices, overlap, starts):
        assert [w.start for w in plan_slabs(depth, slab_slices, overlap, "forward")] == starts

    def test_order(self):
        assert Slab(3, 4, reverse=False).order == [3, 4, 5, 6]
        assert Slab(3, 4, reverse=True).order == [6, 5, 4, 3]


@pytest.mark.parametrize(
    ("length", "weights"), [(1, [1]), (2, [2 / 3, 2 / 3]), (3, [0.5, 1, 0.5]), (4, [0.4, 0.8, 0.8, 0.4])]
)
def test_blend_weights_by_hand(length, weights):
    assert blend_weights(length) == pytest.approx(weights)


def test_blender_is_the_weighted_mean_and_forgets():
    blender = SliceBlender()
    blender.add(Slab(2, 3, reverse=False), torch.tensor([0.0, 4.0, 7.0]).view(1, 3, 1, 1))
    blender.add(Slab(1, 3, reverse=True), torch.tensor([1.0, 0.0, 0.0], dtype=torch.bfloat16).view(1, 3, 1, 1))
    taken = blender.take(3)
    assert taken.item() == pytest.approx(3.0)
    assert taken.dtype == torch.float32
    assert blender.take(4).item() == pytest.approx(7.0)
    with pytest.raises(KeyError):
        blender.take(3)


class TestBlending:
    @pytest.mark.parametrize("direction", ["forward", "backward", "both"])
    @pytest.mark.parametrize(("depth", "overlap"), [(1, 0.5), (3, 0.5), (4, 0.5), (13, 0.5), (23, 0.8), (9, 0.0)])
    def test_what_all_slabs_agree_on_is_kept_in_its_place(self, depth, overlap, direction):
        result = blended(Told(), depth, overlap=overlap, direction=direction)
        torch.testing.assert_close(result, torch.arange(float(depth)))

    def test_disagreement_by_hand(self):
        """Slabs 0-2 and 1-3 say their own place 0, 1, 2, weighted 1, 2, 1."""
        place = Told(lambda values: torch.arange(3.0).expand_as(values))
        forward = blended(place, 4, slab_slices=3, overlap=0.6, direction="forward")
        assert forward.tolist() == pytest.approx([0, (2 * 1 + 1 * 0) / 3, (1 * 2 + 2 * 1) / 3, 2])
        backward = blended(place, 4, slab_slices=3, overlap=0.6, direction="backward")
        assert backward.tolist() == pytest.approx([2, (2 * 1 + 1 * 2) / 3, (1 * 0 + 2 * 1) / 3, 0])

    def test_both_is_the_mean_of_the_two(self):
        place = Told(lambda values: torch.linspace(0, 1, values.shape[1]).expand_as(values) ** 2)
        one, two, both = (blended(place, 11, direction=d) for d in ("forward", "backward", "both"))
        assert not torch.allclose(one, two)
        torch.testing.assert_close(both, (one + two) / 2)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100, None])
    def test_any_batch_gives_the_same(self, batch_size):
        place = Told(lambda values: values + torch.arange(values.shape[1]))
        expected = blended(place, 17, overlap=0.7, batch_size=1)
        torch.testing.assert_close(blended(place, 17, overlap=0.7, batch_size=batch_size), expected)

    @pytest.mark.parametrize("direction", ["forward", "backward", "both"])
    def test_the_network_sees_slabs_in_their_direction(self, direction):
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

    def test_gather_follows_each_slabs_order(self):
        features = FeatureBuffer(Forward(Told(), stack(9), FLOAT32))
        gathered = features.gather([Slab(1, 3, reverse=False), Slab(4, 3, reverse=True)])
        assert [[int(x.z) for x in slab] for slab in gathered] == [[1, 2, 3], [6, 5, 4]]
        assert int(gathered[1][0].stride4) == 600

    def test_a_read_only_memory_map_will_do(self, tmp_path):
        np.save(tmp_path / "slices.npy", stack(5))
        slices = np.load(tmp_path / "slices.npy", mmap_mode="r")
        (features,) = FeatureBuffer(Forward(Told(), slices, FLOAT32)).gather([Slab(0, 5, reverse=False)])
        assert [int(x.z) for x in features] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
    def test_other_types_and_views_will_do(self, dtype):
        forward = Forward(Told(), stack(5, dtype)[::-1], FLOAT32)
        (features,) = FeatureBuffer(forward).gather([Slab(0, 5, reverse=False)])
        assert [int(x.z) for x in features] == [4, 3, 2, 1, 0]
        assert features[0].z.dtype == torch.float32


class TestMemory:
    """What is held of features and logits while a long stack passes."""

    @pytest.fixture
    def parts(self, monkeypatch):
        made = {}
        for name in ("FeatureBuffer", "SliceBlender"):
            kind = getattr(slabs_module, name)

            def make(*arguments, name=name, kind=kind):
                made[name] = kind(*arguments)
                return made[name]

            monkeypatch.setattr(slabs_module, name, make)
        return made

    @pytest.mark.parametrize("direction", ["forward", "both"])
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_finished_slices_are_let_go(self, parts, direction, batch_size):
        slab_slices, stride = 6, 3
        config = InferenceConfig(direction=direction, batch_size=batch_size, precision="32")
        logits = slab_logits(Forward(Told(), stack(200), config), slab_slices)
        reach = slab_slices + stride * batch_size  # a batch and what the one before it left
        for index, _ in logits:
            features, blender = parts["FeatureBuffer"], parts["SliceBlender"]
            assert len(features._features) <= reach
            assert len(blender._sums) == len(blender._weights) <= reach
            assert index not in blender._sums
        assert not features._features
        assert not blender._sums

    def test_slices_come_as_soon_as_no_slab_needs_them(self):
        network = Told()
        config = InferenceConfig(direction="forward", batch_size=1, precision="32")
        logits = slab_logits(Forward(network, stack(100), config), 4)
        next(logits)
        assert max(network.encoded) == 3
        next(logits)
        next(logits)
        assert max(network.encoded) == 5


class TestBatchSize:
    """How many slabs go at once, and what happens if they do not fit."""

    def test_what_does_not_fit_goes_on_one_by_one_after_one_line(self, caplog):
        place = Told(lambda values: values + torch.arange(values.shape[1]), most_slabs=2)
        expected = blended(Told(place.say), 17, batch_size=1)
        with caplog.at_level(logging.WARNING):
            torch.testing.assert_close(blended(place, 17, batch_size=5), expected)
        (record,) = caplog.records
        assert record.getMessage() == "a batch of 5 slabs does not fit in memory: going on one by one"

    def test_one_slab_that_does_not_fit_is_an_error(self):
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            blended(Told(most_slabs=0), 5, batch_size=3)

    def test_another_error_is_not_taken_for_a_lack_of_memory(self):
        def broken(values):
            raise RuntimeError("shapes do not match")

        with pytest.raises(RuntimeError, match="shapes"):
            blended(Told(broken), 9, batch_size=3)

    @pytest.mark.parametrize(("free", "expected"), [(10**12, 8), (2 * 1_000_000 * 3, 3), (0, 1)])
    def test_as_many_as_half_of_the_free_memory_holds_and_as_pay(self, monkeypatch, free, expected):
        """Slabs of 100,000 bytes of features and 100,000 of maps, on a grid of 8 x 8."""
        monkeypatch.setattr(slabs_module, "BYTES_A_BYTE", 5)
        monkeypatch.setattr(slabs_module, "PLACES_AT_ONCE", (8 * 64, 0))
        monkeypatch.setattr(slabs_module, "free_bytes", lambda device: free)
        one = DecoderFeatures(*(torch.zeros(1, channels, 8, 8) for channels in (25, 25, 28)))
        assert one.z.nbytes == 6400
        slab = [one] * 5  # 5 x 78 x 256 = 99,840 bytes
        fitting = slabs_that_fit(Forward(Told(), stack(5), FLOAT32), slab, torch.zeros(25_040))  # 100,160 bytes
        assert fitting == expected
