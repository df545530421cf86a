"""Slice mixing joins neighbours, begins as nothing, and passes as a stream."""

import numpy as np
import pytest
import torch

from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.inference.stream import stream_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.slice_mixing import SliceMixer, SliceMixers
from sam2_3dmed.model.weights import load_sam2, read_sam2


def made(move, **switches):
    """A nano network of two classes whose mixers, context and fusion have an effect."""
    torch.manual_seed(0)
    config = NetworkConfig(size="nano", image_size=64, slice_mixing=True, **switches)
    network = build_network(config, 2).eval()
    move(*(module for module in network.modules() if isinstance(module, SliceMixer)), std=0.1)
    move(network.srpp and network.srpp.to_context, network.boundary_to_segmentation)
    return network


def slices_of(depth, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((1, depth, 1, 64, 64), dtype=np.float32))


class TestMixer:
    @pytest.mark.parametrize("depthwise", [False, True])
    def test_it_starts_as_the_identity(self, depthwise):
        stack = torch.randn(2, 5, 8, 6, 7)
        assert torch.equal(SliceMixer(8, depthwise=depthwise)(stack), stack)

    @pytest.mark.parametrize(("depthwise", "reach"), [(False, 2), (True, 1)])
    def test_a_slice_depends_on_its_neighbours_within_reach_and_no_others(self, move, depthwise, reach):
        mixer = SliceMixer(8, depthwise=depthwise)
        move(mixer)
        stack = torch.randn(1, 9, 8, 6, 7)
        changed = stack.clone()
        changed[:, 4] += torch.randn(8, 6, 7)
        differs = [not torch.equal(a, b) for a, b in zip(mixer(stack)[0], mixer(changed)[0], strict=True)]
        assert mixer.reach == reach
        assert differs == [abs(i - 4) <= reach for i in range(9)]

    @pytest.mark.parametrize("depthwise", [False, True])
    @pytest.mark.parametrize("sizes", [[1], [1, 1, 1, 1, 1, 1, 1], [7], [2, 5], [5, 1, 1], [3, 3, 1]])
    def test_a_stream_is_the_whole_stack(self, move, depthwise, sizes):
        mixer = SliceMixer(8, depthwise=depthwise)
        move(mixer)
        stack, numbers = torch.randn(2, sum(sizes), 8, 6, 5), torch.arange(sum(sizes)).expand(2, -1)
        chunks = list(mixer.stream(zip(stack.split(sizes, dim=1), numbers.split(sizes, dim=1), strict=True)))
        mixed, passed = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
        torch.testing.assert_close(mixed, mixer(stack), atol=1e-5, rtol=1e-5)
        assert torch.equal(passed, numbers)

    def test_a_stream_holds_back_no_more_than_its_reach(self):
        mixer, given = SliceMixer(8), []

        def chunks():
            for number in range(100):
                given.append(number)
                yield [torch.full((1, 1, 8, 2, 2), float(number))]

        for done, _ in enumerate(mixer.stream(chunks()), start=1):
            assert len(given) <= done + mixer.reach

    def test_several_pass_as_a_stream_one_after_the_other(self, move):
        mixers = SliceMixers(SliceMixer(8), SliceMixer(8))
        move(*mixers)
        stack = torch.randn(2, 11, 8, 6, 5)
        first, second = mixers
        torch.testing.assert_close(mixers(stack), second(first(stack)))
        mixed = torch.cat([x for (x,) in mixers.stream([part] for part in stack.split([4, 1, 6], dim=1))], dim=1)
        torch.testing.assert_close(mixed, mixers(stack), atol=1e-5, rtol=1e-5)


class TestNetwork:
    @pytest.mark.parametrize("memory", ["recent", "none"])
    def test_at_the_start_it_is_the_network_without_mixing(self, memory):
        networks = []
        for mixing in (False, True):
            torch.manual_seed(0)
            config = NetworkConfig(size="nano", image_size=64, memory=memory, slice_mixing=mixing)
            networks.append(build_network(config, 2).eval())
        networks[1].load_state_dict(networks[0].state_dict(), strict=False)
        slices = slices_of(4)
        with torch.no_grad():
            plain, mixed = (network(slices) for network in networks)
        torch.testing.assert_close(mixed.segmentation, plain.segmentation, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed.boundary, plain.boundary, atol=1e-5, rtol=1e-5)

    def test_without_memory_and_mixing_slices_are_alone(self):
        network = build_network(NetworkConfig(size="nano", image_size=64, memory="none", srpp=False), 2).eval()
        slices = slices_of(5)
        with torch.no_grad():
            together = network(slices)
            alone = [network(slices[:, i : i + 1]) for i in range(5)]
        for part in ("segmentation", "boundary"):
            single = torch.cat([getattr(prediction, part) for prediction in alone], dim=2)
            torch.testing.assert_close(getattr(together, part), single, atol=1e-4, rtol=1e-4)

    def test_without_memory_it_has_no_weights_of_memory(self):
        network = build_network(NetworkConfig(size="nano", image_size=64, memory="none"), 2)
        assert not [name for name in network.state_dict() if "memory" in name and "no_memory_embedding" not in name]

    def test_sam2s_weights_load_without_memory(self, hf_folder):
        config = NetworkConfig(size="nano", image_size=64, slice_mixing=True, memory="none")
        network = build_network(config, 2)
        load_sam2(network, read_sam2(hf_folder))
        memory = build_network(config.model_copy(update={"memory": "recent"}), 2)
        load_sam2(memory, read_sam2(hf_folder))
        loaded = memory.state_dict()
        ours = {name: w for name, w in network.state_dict().items() if name.startswith(("encoder", "segmentation"))}
        assert all(torch.equal(weight, loaded[name]) for name, weight in ours.items() if "mixer" not in name)
        with torch.no_grad():  # a slice without memories is the same in both
            single = slices_of(1)
            torch.testing.assert_close(
                network.eval()(single).segmentation, memory.eval()(single).segmentation, atol=1e-4, rtol=1e-4
            )

    @pytest.mark.parametrize("memory", ["recent", "self_sorting", "none"])
    def test_every_weight_that_trains_has_a_gradient_once_mixing_has_an_effect(self, move, memory):
        network = made(move, memory=memory).train()
        prediction = network(slices_of(4))
        loss = prediction.segmentation.square().mean() + prediction.boundary.square().mean()
        (loss + prediction.relative_position.square().mean()).backward()
        mixers = [name for name, weight in network.named_parameters() if "mixer" in name]
        assert len(mixers) == 9 * 6
        without = [n for n, w in network.named_parameters() if "mixer" in n and (w.grad is None or not w.grad.any())]
        assert not without

    @pytest.mark.parametrize("direction", ["forward", "backward"])
    @pytest.mark.parametrize("memory", ["recent", "none"])
    @pytest.mark.parametrize("boundary", [True, False])
    def test_a_stream_is_the_whole_stack_at_once(self, move, memory, boundary, direction):
        network = made(move, memory=memory, boundary=boundary, srpp=False)
        slices = slices_of(11)
        config = InferenceConfig(direction=direction, precision="32")
        with torch.inference_mode():
            ordered = slices.flip(1) if direction == "backward" else slices
            whole = network(ordered).segmentation[0].transpose(0, 1)
            forward = Forward(network, slices[0].numpy(), config)
            order, logits = zip(*stream_logits(forward, 4), strict=True)
        assert list(order) == list(range(11))[:: -1 if direction == "backward" else 1]
        # With memory, an input that is 1e-7 larger moves the logits of this network by 1e-4.
        close = 1e-5 if memory == "none" else 5e-4
        torch.testing.assert_close(torch.stack(logits), whole, atol=close, rtol=close)

    def test_without_memory_both_directions_are_one_pass(self, move):
        network = made(move, memory="none", srpp=False)
        encoded = []
        network.encoder.register_forward_hook(lambda module, given, out: encoded.append(given[0].shape[1]))
        slices = slices_of(9)[0].numpy()
        with torch.inference_mode():
            both, one = (
                torch.stack([logits for _, logits in stream_logits(Forward(network, slices, config), 4)])
                for config in (InferenceConfig(direction=way, precision="32") for way in ("both", "forward"))
            )
        assert torch.equal(both, one)
        assert sum(encoded) == 2 * 9
