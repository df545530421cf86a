"""Fresh networks: what repeats, what starts at zero, and that the signal survives the depth."""

import pytest
import torch
from torch import nn

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.encoders.hiera import HIERA_SIZES
from sam2_3dmed.model.build import SIZES, build_network


def test_the_same_seed_gives_the_same_weights(nano) -> None:
    one, other, different = nano(), nano(), nano(seed=1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert any(not torch.equal(t, different.state_dict()[name]) for name, t in one.state_dict().items())


NEW_PATHS = (
    "srpp.to_context",
    "boundary_to_segmentation",
    "segmentation.class_memory",
    "boundary.decoder.class_memory",
)


def test_only_the_new_paths_start_at_zero(nano) -> None:
    """Biases aside: those of the new paths are zero too, others may be."""
    weights = dict(nano().named_parameters())
    zero = {name for name, tensor in weights.items() if not tensor.any()}
    assert {name for name in zero if "bias" not in name} == {f"{path}.weight" for path in NEW_PATHS}
    assert {f"{path}.bias" for path in NEW_PATHS[:2]} <= zero


def test_what_a_fresh_network_remembers_counts_for_nothing(nano, slab) -> None:
    """With a token instead of memories a second slice passes as the first does; without, it passes elsewhere."""
    network, slices = nano(no_memory_token=True), slab(depth=4)
    together, alone = network(slices), network(slices.transpose(0, 1))
    torch.testing.assert_close(together.segmentation[0], alone.segmentation[:, :, 0].transpose(0, 1))
    torch.testing.assert_close(together.boundary[0], alone.boundary[:, :, 0].transpose(0, 1))
    network, wanted = nano(), nano()(slices.transpose(0, 1)).segmentation[:, :, 0].transpose(0, 1)
    assert (network(slices).segmentation[0] - wanted).abs().max() > 0.01


def test_the_two_decoders_share_nothing(nano) -> None:
    network = nano()
    first = {tensor.data_ptr() for tensor in network.segmentation.parameters()}
    second = {tensor.data_ptr() for tensor in network.boundary.parameters()}
    assert not first & second


def test_the_signal_survives_the_depth(nano, slab) -> None:
    """Feature levels of a fresh encoder differ between slices about as much as they vary at all."""
    features = nano().encoder(slab(depth=6))
    for level in features:
        assert 0.05 < level.std() < 50
        assert level.std(dim=1).mean() > 0.1 * level.std()


def test_fresh_logits_are_neither_flat_nor_huge(nano, slab) -> None:
    prediction = nano()(slab(depth=3))
    for logits in (prediction.segmentation, prediction.boundary):
        assert 1e-3 < logits.std() < 30


def test_classes_start_apart_from_scratch(nano, slab) -> None:
    logits = nano(num_classes=3)(slab(depth=1)).segmentation
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", SIZES)
def test_every_size_builds_with_its_own_widths(name: str) -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(size=name, image_size=64), 2)
    assert network.segmentation.channels == SIZES[name].channels
    assert len(network.encoder.vision_encoder.backbone.blocks) == sum(HIERA_SIZES[name].blocks)
    assert len(network.segmentation.memory_attention.layers) == SIZES[name].memory_attention_layers
    projection = network.encoder.vision_encoder.backbone.patch_embed.projection
    assert projection.weight.shape[0] == HIERA_SIZES[name].widths[0]


def test_parameters_of_tiny_are_sam2s() -> None:
    """27 M in the encoder, 5.9 M in memory attention, about 1.4 M in the memory encoder."""
    with torch.device("meta"):
        network = build_network(NetworkConfig(size="tiny", image_size=512), 1)

    def millions(module: nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(network.encoder) == pytest.approx(27, abs=0.5)
    assert millions(network.segmentation.memory_attention) == pytest.approx(5.9, abs=0.1)
    assert millions(network.segmentation.memory_encoder) == pytest.approx(1.4, abs=0.1)


def test_switched_off_parts_do_not_exist(nano) -> None:
    plain = nano(srpp=False, boundary=False)
    assert plain.srpp is None
    assert plain.boundary is None
    assert plain.boundary_to_segmentation is None
    assert {name.split(".")[0] for name in plain.state_dict()} == {"encoder", "segmentation"}
    assert nano(boundary_fusion=False).boundary.fusion.projections is None
    assert nano(share_context=False).srpp.to_context is None
    assert nano(srpp_memory=True).srpp.causal
    assert nano(fusion_residual=True).boundary.fusion.residual
