"""Which loss teaches which part (readings 1, 3 and 15), and that no trained weight is left without a gradient."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sam2_3dmed.config import LossConfig
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.losses import TotalLoss

PARTS = ("encoder", "srpp", "boundary", "segmentation", "boundary_to_segmentation")


@pytest.fixture
def terms(slab) -> Callable[..., dict[str, torch.Tensor]]:
    """Eq. 6's terms of a slab of four slices, two blobs in them, fed in reverse."""

    def compute(network: SAM2For3dMed, depth: int = 4) -> dict[str, torch.Tensor]:
        masks = torch.zeros(2, 2, depth, 64, 64)
        masks[:, 0, :, 8:24, 8:30] = 1
        masks[:, 1, :, 30:50, 20:60] = 1
        loss = TotalLoss(LossConfig(terms={"dice": 1, "bce": 1, "relative_position": 0.01, "boundary": 0.1}))
        positions = torch.arange(depth, 0, -1).expand(2, depth)
        return loss(network(slab(batch=2, depth=depth)), masks, positions)

    return compute


def reached(network: SAM2For3dMed, term: Tensor) -> set[str]:
    """Names of the parameters that a term teaches: a gradient arrives and is not all zero."""
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(term, list(named.values()), allow_unused=True, retain_graph=True)
    pairs = zip(named, gradients, strict=True)
    return {name for name, gradient in pairs if gradient is not None and bool(gradient.any())}


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def under(names: set[str], prefix: str) -> set[str]:
    return {name for name in names if name.startswith(prefix)}


def srpp_encoder(network: SAM2For3dMed) -> set[str]:
    return {f"srpp.slice_encoder.{name}" for name, _ in network.srpp.slice_encoder.named_parameters()}


@pytest.fixture(params=[True, False], ids=["frozen encoder", "training encoder"])
def network(request, nano) -> Iterator[SAM2For3dMed]:
    network = nano()
    if request.param:
        network.encoder.freeze()
    return network.train()


def test_the_position_loss_teaches_srpp_and_nothing_else(network, open_paths, terms) -> None:
    for moved in (False, True):
        names = reached(open_paths(network) if moved else network, terms(network)["relative_position"])
        assert parts(names) == {"srpp"}
        assert srpp_encoder(network) <= names
        assert under(names, "srpp.pair_mlp.")
        assert not under(names, "srpp.to_context")


@pytest.mark.parametrize("term", ["dice", "boundary"])
def test_the_mask_losses_reach_srpps_encoder_once_the_convolution_moved(network, move, terms, term: str) -> None:
    names = reached(network, terms(network)[term])
    assert under(names, "srpp.") == {"srpp.to_context.weight", "srpp.to_context.bias"}
    move(network.srpp.to_context)
    names = reached(network, terms(network)[term])
    assert srpp_encoder(network) <= names
    assert not under(names, "srpp.pair_mlp.")


def test_an_unshared_context_keeps_the_mask_losses_out_of_srpp(nano, open_paths, terms) -> None:
    network = open_paths(nano(share_context=False)).train()
    computed = terms(network)
    assert not under(reached(network, computed["dice"]) | reached(network, computed["boundary"]), "srpp.")


def test_changing_srpps_encoder_changes_the_segmentation_once_the_convolution_moved(nano, slab, move) -> None:
    network, slices = nano(), slab(depth=3)
    weights = {name: tensor.clone() for name, tensor in network.srpp.slice_encoder.state_dict().items()}
    before = network(slices)
    move(network.srpp.slice_encoder)
    torch.testing.assert_close(network(slices).segmentation, before.segmentation)
    network.srpp.slice_encoder.load_state_dict(weights)

    move(network.srpp.to_context)
    before = network(slices)
    move(network.srpp.slice_encoder)
    after = network(slices)
    assert (after.segmentation - before.segmentation).abs().max() > 1e-3
    assert (after.boundary - before.boundary).abs().max() > 1e-3


def test_the_segmentation_loss_reaches_bd_through_the_projection_once_it_moved(network, move, terms) -> None:
    names = reached(network, terms(network)["dice"])
    assert under(names, "boundary") == {"boundary_to_segmentation.weight", "boundary_to_segmentation.bias"}
    move(network.boundary_to_segmentation)
    names = reached(network, terms(network)["dice"])
    assert under(names, "boundary.fusion.")
    for part in ("memory_attention", "memory_encoder", "mask_decoder", "no_memory_embedding"):
        assert under(names, f"boundary.decoder.{part}")


def test_the_boundary_loss_does_not_reach_the_segmentation(network, open_paths, terms) -> None:
    names = reached(open_paths(network), terms(network)["boundary"])
    expected = {"srpp", "boundary"} | ({"encoder"} if not network.encoder.frozen else set())
    assert parts(names) == expected


def test_the_mask_losses_reach_an_encoder_that_trains(nano, terms) -> None:
    network = nano().train()
    computed = terms(network)
    assert under(reached(network, computed["dice"]), "encoder.")
    assert under(reached(network, computed["boundary"]), "encoder.")


def test_nothing_reaches_the_frozen_encoder(nano, open_paths, terms) -> None:
    network = open_paths(nano()).train()
    network.encoder.freeze()
    terms(network)["total"].backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())


# A lone slice has no memory to attend to, unless it reads a token, and no pair; what serves only those gets no gradient
# from it.
LONE_SLICE = (
    "memory_attention.",
    "memory_encoder.",
    "object_pointer_proj.",
    "temporal_positional_encoding_projection_layer.",
    "memory_temporal_positional_encoding",
    "class_memory.",
)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("token", [True, False])
def test_every_trained_weight_gets_a_gradient(nano, open_paths, terms, depth: int, frozen: bool, token: bool) -> None:
    """Otherwise DDP waits forever for it."""
    network = open_paths(nano(no_memory_token=token)).train()
    if frozen:
        network.encoder.freeze()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    terms(network, depth)["total"].backward()
    left = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert not left
    assert trained == {name for name, p in network.named_parameters() if p.grad is not None}


def test_a_lone_slice_teaches_memory_attention_where_it_reads_a_token(nano, open_paths, terms) -> None:
    network = open_paths(nano(no_memory_token=True)).train()
    names = reached(network, terms(network, 1)["total"])
    attention = "segmentation.memory_attention.layers.0"
    assert {f"{attention}.self_attn.q_proj.weight", f"{attention}.cross_attn_image.v_proj.weight"} <= names
    assert {"segmentation.no_memory_embedding", "boundary.decoder.no_memory_embedding"} <= names
    for left in (f"{attention}.cross_attn_image.q_proj", f"{attention}.cross_attn_image.k_proj"):
        assert not under(names, left)  # of a single token nothing is chosen
    assert not under(names, "segmentation.memory_encoder")


def test_a_slab_of_one_slice_leaves_out_the_memory_alone(nano, open_paths, terms) -> None:
    network = open_paths(nano()).train()
    terms(network, 1)["total"].backward()
    for name, parameter in network.named_parameters():
        inside = name.removeprefix("boundary.decoder.").removeprefix("segmentation.")
        assert (parameter.grad is None) == (inside != name and inside.startswith(LONE_SLICE)), name


@pytest.mark.parametrize("token", [True, False])
def test_all_of_them_learn_something(nano, open_paths, terms, token: bool) -> None:
    """Not only a gradient, but one that is not zero: no part is dead."""
    network = open_paths(nano(no_memory_token=token)).train()
    names = reached(network, terms(network, 4)["total"])
    assert {name for name, _ in network.named_parameters()} - names == set()
