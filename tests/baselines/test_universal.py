"""The head by a loop over classes, its 153 numbers, and that names or learnt embeddings reach the logits."""

import pytest
import torch
import torch.nn.functional as F

from sam2_3dmed.baselines.universal import TextDrivenHead


def head(text: bool = False) -> TextDrivenHead:
    torch.manual_seed(0)
    return TextDrivenHead(12, 24, 3, text=text)


def test_a_class_has_153_numbers() -> None:
    assert head().controller.out_features == 153 == 8 * 8 + 8 + 8 * 8 + 8 + 8 + 1


def test_the_head_class_by_class() -> None:
    one = head()
    features, deep = torch.randn(2, 12, 2, 3, 4), torch.randn(2, 24, 1, 1, 2)
    logits = one(features, deep)
    assert logits.shape == (2, 3, 2, 3, 4)
    for b in range(2):
        volume = one.volume_condition(one.pool(deep[b : b + 1]).flatten(1))[0]
        for k in range(3):
            numbers = one.controller(torch.cat([volume, one.class_condition.weight[k]]))
            w1, b1, w2, b2, w3, b3 = numbers.split([64, 8, 64, 8, 8, 1])
            x = one.reduce(features[b : b + 1]).flatten(2)[0]  # (8, voxels)
            x = F.relu(w1.view(8, 8) @ x + b1[:, None])
            x = F.relu(w2.view(8, 8) @ x + b2[:, None])
            expected = (w3.view(1, 8) @ x + b3[:, None]).view(2, 3, 4)
            torch.testing.assert_close(logits[b, k], expected, atol=1e-5, rtol=1e-4)


def test_names_reach_the_logits_and_are_kept_with_the_weights() -> None:
    one = head(text=True)
    features, deep = torch.randn(1, 12, 2, 2, 2), torch.randn(1, 24, 1, 1, 2)
    before = one(features, deep)
    assert torch.equal(before[:, 0], before[:, 1])  # no names yet: all alike
    one.text = F.normalize(torch.randn(3, 512), dim=1)
    assert not torch.equal(one(features, deep)[:, 0], one(features, deep)[:, 1])
    assert one.state_dict()["text"].shape == (3, 512)
    assert "text" not in head().state_dict()


def test_the_whole_network() -> None:
    pytest.importorskip("einops")
    from sam2_3dmed.baselines.universal import Universal

    torch.manual_seed(0)
    network = Universal(1, 2, 12, text=False)
    logits = network(torch.randn(1, 1, 64, 32, 32))
    assert logits.shape == (1, 2, 64, 32, 32)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
