"""Checkpointing and encoding a few slices at a time: less is kept, nothing else changes. And no dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.slice_mixing import SliceMixer


def learn(network: SAM2For3dMed, slices: Tensor, *, bf16: bool = False) -> tuple[dict[str, Tensor], int]:
    """The gradients, and how many bytes were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction = network.train()(slices)
        loss = sum(part.float().square().mean() for part in prediction)
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}, sum(kept.values())


@contextmanager
def sizes_of_calls(module: nn.Module) -> Iterator[list[int]]:
    """The batch size of each call of a module."""
    sizes: list[int] = []
    hook = module.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    yield sizes
    hook.remove()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * (1 + gradient.abs().max().item()))


@pytest.mark.parametrize("memory_pooling", [1, 2])
def test_gradients_are_those_without(nano, slab, open_paths, memory_pooling: int) -> None:
    """Nine slices: the bank has let go of some that earlier slices read, and all are read again on the way back."""
    network, slices = open_paths(nano(memory_pooling=memory_pooling)), slab(depth=9)
    plain, plain_bytes = learn(network, slices)
    network.save_memory(activation_checkpointing=True, slices_at_once=2)
    lean, lean_bytes = learn(network, slices)
    assert_same(lean, plain, 1e-5)
    assert "encoder.vision_encoder.backbone.pos_embed" in lean
    assert "segmentation.memory_temporal_positional_encoding" in lean
    assert lean_bytes < plain_bytes / 4


def test_gradients_of_single_slices_are_those_without(nano, slab, open_paths) -> None:
    network, slices = open_paths(nano()), slab(batch=5, depth=1)
    network.encoder.freeze()
    plain, plain_bytes = learn(network, slices)
    network.save_memory(activation_checkpointing=True, slices_at_once=2)
    lean, lean_bytes = learn(network, slices)
    assert_same(lean, plain, 1e-5)
    assert lean_bytes < plain_bytes / 3


def test_gradients_without_memory_are_those_without(nano, slab, move) -> None:
    network, slices = nano(memory="none", slice_mixing=True), slab(depth=9)
    move(*(module for module in network.modules() if isinstance(module, SliceMixer)), std=0.1)
    move(network.srpp.to_context, network.boundary_to_segmentation)
    network.encoder.freeze()
    plain, plain_bytes = learn(network, slices)
    network.save_memory(activation_checkpointing=True, slices_at_once=2)
    with sizes_of_calls(network.segmentation.mask_decoder) as sizes:
        lean, lean_bytes = learn(network, slices)
    assert_same(lean, plain, 1e-5)
    assert sizes == [2, 2, 2, 2, 1, 1, 2, 2, 2, 2]  # forward, and again going backward
    assert lean_bytes < plain_bytes / 3


def test_gradients_under_autocast_are_those_without(nano, slab, open_paths) -> None:
    network, slices = open_paths(nano()), slab(depth=2)
    plain, _ = learn(network, slices, bf16=True)
    network.save_memory(activation_checkpointing=True, slices_at_once=None)
    lean, _ = learn(network, slices, bf16=True)
    assert_same(lean, plain, 1e-3)  # the order of sums, in bf16


def test_what_is_computed_again_is_not_remembered_again(nano, slab) -> None:
    network, slices = nano().train(), slab(depth=4)
    network.save_memory(activation_checkpointing=True, slices_at_once=None)
    features = network.project(network.encoder(slices))
    context, _ = network.slice_context(features.z)
    state = network.start(4)
    masks = [network.step(state, features.at(i), context[:, i])[0] for i in range(4)]
    before = [bank.spatial()[0] for bank in state]
    torch.stack(masks).square().mean().backward()
    assert [bank.count for bank in state] == [3, 3]  # nobody reads the fourth
    for bank, memories in zip(state, before, strict=True):
        assert all(a is b for a, b in zip(bank.spatial()[0], memories, strict=True))


def test_predictions_do_not_change(nano, slab) -> None:
    network, slices = nano(), slab(batch=2, depth=3)
    with torch.inference_mode():
        expected = network(slices)
        network.save_memory(activation_checkpointing=True, slices_at_once=4)
        for found, part in zip(network(slices), expected, strict=True):
            torch.testing.assert_close(found, part, atol=1e-5, rtol=1e-5)


def test_a_slab_of_24_slices_trains(nano, slab, open_paths) -> None:
    network, slices = open_paths(nano(boundary=False)), slab(depth=24)
    network.save_memory(activation_checkpointing=True, slices_at_once=4)
    target = F.interpolate(slices[:, :, 0], (16, 16)).unsqueeze(1).gt(0.5).float().expand(-1, 2, -1, -1, -1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network.train()(slices).segmentation, target)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_there_is_no_dropout(nano, slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training as well: what is computed again must be the same, and the paper names none."""
    network = nano().train()
    assert not [name for name, module in network.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    shares = []
    attention = F.scaled_dot_product_attention

    def note(query, key, value, attn_mask=None, dropout_p=0.0, *args, **kwargs):
        shares.append(dropout_p)
        return attention(query, key, value, attn_mask, dropout_p, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    network(slab(depth=2))
    assert len(shares) > 20  # encoder, SRPP, memory attention and mask decoder of two branches
    assert set(shares) == {0.0}
