"""That a batch of unequal slabs weighs every slab alike; single slices, then slabs; who gets boxes."""

from collections.abc import Callable

import pytest
import torch

from sam2_3dmed.data.slabs import Slabs, collate
from sam2_3dmed.model.prompts import NOTHING, Prompts, boxes_around
from sam2_3dmed.training.slab_training import SlabTraining

MakeModule = Callable[..., SlabTraining]
FOUR_EPOCHS = {"epochs": 4, "slab_rate": 1}


@pytest.fixture(scope="module")
def module(make_module: MakeModule) -> SlabTraining:
    return make_module(**FOUR_EPOCHS, single_slice_fraction=0)


def slab(depth: int, seed: int) -> Slabs:
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand(1, depth, 1, 64, 64, generator=generator)
    return Slabs(slices, (slices[:, :, 0] > 0.5).int(), torch.arange(depth).unsqueeze(0))


def test_slabs_of_unequal_length_weigh_alike(module: SlabTraining) -> None:
    slabs = [slab(3, 0), slab(2, 1), slab(3, 2)]
    with torch.no_grad():
        together = module(collate(slabs))
        alone = [module(collate([w])) for w in slabs]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 3, rel=1e-5)


def learn(module: SlabTraining, step: int) -> torch.Tensor:
    """The loss of one step, whose gradients are left in the module."""
    module.progress.step = step
    module.zero_grad()
    loss = module(collate([slab(3, 0)]))
    loss.backward()
    return loss


def of_memory(module: SlabTraining) -> list[torch.Tensor | None]:
    branch = module.network.segmentation
    parameters = [*branch.memory_attention.parameters(), *branch.memory_encoder.parameters()]
    return [parameter.grad for parameter in parameters]


def test_single_slices_need_no_memory(make_module: MakeModule) -> None:
    module = make_module(**FOUR_EPOCHS, single_slice_fraction=0.8)
    loss = learn(module, step=14)
    assert all(grad is None for grad in of_memory(module))
    network = module.network
    for part in (network.encoder, network.segmentation.mask_decoder, network.boundary.decoder.mask_decoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    slices = slab(3, 0).single_slices()
    assert [tuple(part.shape) for part in slices[:3]] == [(3, 1, 1, 64, 64), (3, 1, 64, 64), (3, 1)]
    assert loss.item() == pytest.approx(module(collate([slices])).item(), rel=1e-5)


def test_then_slabs_with_their_memory(make_module: MakeModule) -> None:
    module = make_module(**FOUR_EPOCHS, single_slice_fraction=0.8)
    learn(module, step=15)
    assert all(grad is not None for grad in of_memory(module))
    assert all(p.grad is not None for p in module.network.encoder.parameters())


def test_boxes_are_drawn_on_every_so_many_slices(make_module: MakeModule) -> None:
    module = make_module(**FOUR_EPOCHS, single_slice_fraction=0)
    module.network.box_every = 2
    seen: list[Prompts] = []
    module.network.register_forward_pre_hook(lambda network, arguments: seen.append(arguments[1]))
    learn(module, step=0)
    boxes = seen[0].points
    assert (boxes[0, :, 0, 0, 2] != NOTHING).tolist() == [True, False, True]
    torch.testing.assert_close(boxes[0, 2, 0], boxes_around(slab(3, 0).labels[0, 2], [1])[0])
