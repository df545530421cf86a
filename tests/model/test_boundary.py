"""BD-Fusion is Eqs. 3 and 4; the detector is a decoder of its own around it."""

import math

import pytest
import torch
from torch import nn

from sam2_3dmed.encoders.image_encoder import Features
from sam2_3dmed.model.boundary import BoundaryFusion
from sam2_3dmed.model.memory_bank import MemoryBank


def fusion_of(channels: int = 8, position: torch.Tensor | None = None, **switches) -> BoundaryFusion:
    """Without a position by default, so that numbers can be done by hand."""
    torch.manual_seed(0)
    return BoundaryFusion(channels, torch.zeros(1, 1, channels) if position is None else position, **switches)


def features(channels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, 3, 4, generator=generator), torch.randn(2, channels, 3, 4, generator=generator)


def silence_mlp(fusion: BoundaryFusion) -> None:
    """Z2 = Z1 from now on."""
    nn.init.zeros_(fusion.mlp[-1].weight)
    nn.init.zeros_(fusion.mlp[-1].bias)


def identity(layer: nn.Linear) -> None:
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)


def test_eq_3_by_hand() -> None:
    """One channel, two places, identity projections: softmax([q k1, q k2]) over the values."""
    fusion = fusion_of(channels=1)
    silence_mlp(fusion)
    for layer in fusion.projections.values():
        identity(layer)
    z_boundary = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    z = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)
    # q = 1: weights 1 : 3, so 3/4 log 3. q = 2: weights 1 : 9, so 9/10 log 3.
    expected = torch.tensor([0.75 * math.log(3), 0.9 * math.log(3)]).view(1, 1, 1, 2)
    torch.testing.assert_close(fusion(z_boundary, z), expected)
    fusion.residual = True
    torch.testing.assert_close(fusion(z_boundary, z), expected + z_boundary)


def test_eq_3_divides_by_the_root_of_the_channels() -> None:
    """Four channels of q = k = v = (log 9, 0, 0, 0) or 0: scores log 9^2 / 2 and 0."""
    fusion = fusion_of(channels=4)
    silence_mlp(fusion)
    for layer in fusion.projections.values():
        identity(layer)
    z = torch.zeros(1, 4, 1, 2)
    z[0, 0, 0, 0] = math.log(9)
    boundary = torch.zeros(1, 4, 1, 2)
    boundary[0, 0] = 1.0  # score log 9 / sqrt(4) = log 3: weights 3 : 1
    expected = torch.zeros(1, 4, 1, 2)
    expected[0, 0] = 0.75 * math.log(9)
    torch.testing.assert_close(fusion(boundary, z), expected)


def test_eq_4_by_hand() -> None:
    """Two channels (3, 1): LayerNorm gives (1, -1); a hand-made MLP turns them into GELU(1) and 0.5."""
    fusion = fusion_of(channels=2, attention=False)
    first, _, last = fusion.mlp
    for layer in (first, last):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        first.weight[0, 0] = 1
        last.weight[0, 0] = 1
        last.bias[1] = 0.5
    gelu = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    boundary = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    expected = torch.tensor([3 + gelu, 1.5]).view(1, 2, 1, 1)
    torch.testing.assert_close(fusion(boundary, torch.randn(1, 2, 1, 1)), expected, atol=1e-4, rtol=0)


def test_without_fusion_the_raw_features_play_no_part() -> None:
    fusion = fusion_of(attention=False)
    assert fusion.projections is None
    boundary, z = features()
    assert torch.equal(fusion(boundary, z), fusion(boundary, z + 1))
    silence_mlp(fusion)
    torch.testing.assert_close(fusion(boundary, z), boundary)  # Z1_bd = Z_bd


def test_with_fusion_queries_are_the_boundarys_and_keys_and_values_the_raw_ones() -> None:
    """A value projection of zero leaves nothing of Eq. 3, whatever the queries are."""
    fusion = fusion_of()
    silence_mlp(fusion)
    boundary, z = features()
    assert (fusion(boundary, z) - fusion(boundary, z + torch.randn_like(z))).abs().max() > 1e-3
    assert (fusion(boundary, z) - fusion(3 * boundary, z)).abs().max() > 1e-4
    nn.init.zeros_(fusion.projections["value"].weight)
    nn.init.zeros_(fusion.projections["value"].bias)
    assert fusion(boundary, z).abs().max() == 0


def test_the_position_goes_to_queries_and_keys_not_to_values() -> None:
    """A constant image: every value is the same, so attention over any positions returns it."""
    boundary, _ = features()
    constant = torch.full((2, 8, 3, 4), 0.7)
    ramp = torch.arange(12.0).view(1, 12, 1).expand(1, 12, 8)
    plain, placed = fusion_of(), fusion_of(position=ramp)
    torch.testing.assert_close(plain(boundary, constant), placed(boundary, constant))
    _, z = features()
    assert (plain(boundary, z) - placed(boundary, z)).abs().max() > 1e-3


def test_the_residual_adds_z_bd() -> None:
    fusion = fusion_of()
    silence_mlp(fusion)
    boundary, z = features()
    without = fusion(boundary, z)
    fusion.residual = True
    torch.testing.assert_close(fusion(boundary, z), without + boundary)


@pytest.mark.parametrize("attention", [True, False])
def test_places_keep_their_place(attention: bool) -> None:
    """Without positions the fusion commutes with moving the boundary's places, and the shape is kept."""
    fusion = fusion_of(attention=attention)
    boundary, z = features()
    fused = fusion(boundary, z)
    assert fused.shape == boundary.shape
    torch.testing.assert_close(fusion(boundary.flip(-1), z), fused.flip(-1), atol=1e-5, rtol=1e-4)


def test_the_detector_remembers_its_own_boundaries(nano, slab) -> None:
    network = nano(num_classes=3, srpp=False)
    detector = network.boundary
    features_of = network.encoder(slab(batch=2, depth=2))
    fine = detector.decoder.project(features_of)
    bank = MemoryBank(3)
    for i in range(2):
        slice_fine = Features(*(level[:, i] for level in fine))
        z = slice_fine.z
        step = detector(z, slice_fine, bank)
        assert step.features.shape == z.shape
        assert step.logits.shape == (2, 3, 16, 16)
        assert bank.count == i  # looking does not change it
        bank.append(step.memory)
    last = detector(z, slice_fine, bank)
    assert last.memory is None  # of three slices nobody would read it
    again = detector(z, slice_fine, MemoryBank(3))
    assert (again.logits - step.logits).abs().max() > 1e-4  # the memory of the first slice mattered
