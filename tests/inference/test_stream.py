"""A stream is SAM2's own pass through all slices; what waits for the second pass waits outside of memory."""

import logging
import weakref

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.errors import DataError
from sam2_3dmed.inference import stream as stream_module
from sam2_3dmed.inference import tta
from sam2_3dmed.inference.stream import TensorSpill, stream_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.build import build_network


@pytest.fixture(scope="module")
def network():
    """Two classes; SRPP's context and BD's features reach the masks, which they do not in a fresh network."""
    torch.manual_seed(0)
    made = build_network(NetworkConfig(size="nano", image_size=64), 2).eval()
    for part in (made.srpp.to_context, made.boundary_to_segmentation):
        torch.nn.init.normal_(part.weight, std=0.2)
    return made


def stack(depth, seed=0):
    return np.random.default_rng(seed).random((depth, 1, 20, 30), dtype=np.float32)


def streamed(network, slices, direction="forward", slab_slices=4, **options):
    """The order of the slices, and their logits (N, K, h, w)."""
    with torch.inference_mode():
        forward = Forward(network, slices, InferenceConfig(direction=direction, precision="32"))
        found = stream_logits(forward, slab_slices, **options)
        indices, logits = zip(*found, strict=True)
    return list(indices), torch.stack(logits)[np.argsort(indices)]


def by_hand(network, slices, chunk):
    """One pass of the network's own steps, with all features at hand."""
    with torch.inference_mode():
        features = network.project(network.encoder(torch.from_numpy(slices).unsqueeze(0)))
        context = torch.cat([network.slice_context(part)[0] for part in features.z.split(chunk, dim=1)], dim=1)
        state = network.start(len(slices))
        logits = [network.step(state, features.at(i), context[:, i])[0] for i in range(len(slices))]
    return torch.cat(logits)


@pytest.mark.parametrize("depth", [1, 4, 20])
def test_one_chunk_is_the_networks_own_slab(network, depth):
    """However long: 20 slices are more than the bank holds."""
    slices = stack(depth)
    with torch.inference_mode():
        expected = network(torch.from_numpy(slices).unsqueeze(0)).segmentation[0].transpose(0, 1)
    order, logits = streamed(network, slices, slab_slices=depth)
    assert order == list(range(depth))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("depth", "chunk"), [(9, 4), (8, 4), (5, 1), (3, 7)])
def test_context_comes_from_chunks_and_memory_from_all(network, depth, chunk):
    slices = stack(depth)
    expected = by_hand(network, slices, chunk)
    torch.testing.assert_close(streamed(network, slices, slab_slices=chunk)[1], expected, atol=1e-4, rtol=1e-4)
    if 1 < chunk < depth:
        assert (expected - by_hand(network, slices, depth)).abs().max() > 1e-3


def test_backward_is_forward_through_the_reversed_stack(network):
    slices = stack(9)
    order, backward = streamed(network, slices, "backward")
    assert order == list(range(8, -1, -1))
    reversed_slices = np.ascontiguousarray(slices[::-1])
    torch.testing.assert_close(backward, by_hand(network, reversed_slices, 4).flip(0), atol=1e-4, rtol=1e-4)


class TestBoth:
    """The first pass's logits wait in 16 bits, and its features as they are."""

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_is_the_mean_of_the_two(self, network, monkeypatch, in_memory):
        if not in_memory:
            monkeypatch.setattr(stream_module, "IN_MEMORY_BYTES", 0)
        slices = stack(9)
        one, two = (streamed(network, slices, direction)[1] for direction in ("forward", "backward"))
        order, both = streamed(network, slices, "both")
        assert order == list(range(8, -1, -1))
        assert (one - two).abs().max() > 1e-2
        torch.testing.assert_close(both, (one + two) / 2, atol=2e-3 * one.abs().max().item(), rtol=0)

    @pytest.mark.parametrize("room", [True, False])
    def test_a_slice_is_encoded_once_unless_there_is_no_room(self, network, monkeypatch, caplog, room):
        slices, asked = stack(9), []
        encode = Forward.encode
        monkeypatch.setattr(Forward, "encode", lambda self, a, b: asked.extend(range(a, b)) or encode(self, a, b))
        expected = streamed(network, slices, "both")[1]
        assert asked == list(range(9))
        if not room:
            put = TensorSpill.put

            def small(self, number, record):
                if len(record) > 1 and number == 3:
                    raise DataError("/tmp: no temporary file: full")
                put(self, number, record)

            monkeypatch.setattr(TensorSpill, "put", small)
        asked.clear()
        with caplog.at_level(logging.WARNING):
            torch.testing.assert_close(streamed(network, slices, "both")[1], expected, atol=1e-5, rtol=1e-4)
        assert sorted(asked) == sorted(list(range(9)) * (1 if room else 2))
        lines = [record.getMessage() for record in caplog.records]
        assert lines == ([] if room else ["/tmp: no temporary file: full; slices are encoded once for each direction"])

    def test_huge_logits_stay_finite(self, network, monkeypatch):
        step = Forward.step
        monkeypatch.setattr(Forward, "step", lambda *arguments: [1e9 * x for x in step(*arguments)])
        assert streamed(network, stack(3), "both")[1].isfinite().all()

    def test_nothing_is_left_when_the_reader_stops(self, network, monkeypatch):
        monkeypatch.setattr(stream_module, "IN_MEMORY_BYTES", 0)
        spills, make = [], TensorSpill.__init__
        monkeypatch.setattr(TensorSpill, "__init__", lambda self, *a: spills.append(self) or make(self, *a))
        found = stream_logits(Forward(network, stack(9), InferenceConfig(precision="32")), 4)
        with torch.inference_mode():
            next(found)
        assert [spill._file.closed for spill in spills] == [False, False]
        found.close()
        assert [spill._file.closed for spill in spills] == [True, True]


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_is_held_does_not_grow_with_the_slices(network, monkeypatch, direction):
    """The features of a slab and of one slice more live at most, none is a copy, and no waiting tensor is in memory."""
    monkeypatch.setattr(stream_module, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(stream_module, "IN_MEMORY_SHARE", 0)
    monkeypatch.setattr(tta, "PIXELS_AT_ONCE", (1, 1))
    alive, counts, project, step = weakref.WeakSet(), [], network.project, Forward.step

    def watch(features):
        projected = project(features)
        alive.add(projected.stride4)
        counts.append(len(alive))
        return projected

    def watch_step(self, state, features, context):
        assert features.stride4.untyped_storage().nbytes() == features.stride4.nbytes
        return step(self, state, features, context)

    monkeypatch.setattr(network, "project", watch)
    monkeypatch.setattr(Forward, "step", watch_step)
    with torch.inference_mode():
        config = InferenceConfig(direction=direction, precision="32")
        assert len(list(stream_logits(Forward(network, stack(40), config), 4))) == 40
    assert max(counts) <= 5
    assert len(counts) == 40


@pytest.mark.parametrize(("direction", "passes"), [("forward", [False]), ("backward", [True]), ("both", [False, True])])
def test_every_chunk_tells_its_positions(network, direction, passes):
    told = []
    streamed(network, stack(6), direction, on_positions=lambda slab, positions: told.append((slab, positions)))
    orders = {False: [[0, 1, 2, 3], [4, 5]], True: [[5, 4, 3, 2], [1, 0]]}
    assert [slab.order for slab, _ in told] == [order for reverse in passes for order in orders[reverse]]
    assert all(positions.shape == (len(slab.order),) * 2 for slab, positions in told)
