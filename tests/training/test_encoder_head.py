"""The head gives a logit for each class and pixel at stride 4, and its gradient reaches every level."""

import torch

from sam2_3dmed.model.encoder import Features
from sam2_3dmed.training.encoder_head import EncoderHead


def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(*(torch.randn(2, 3, 16, 4 * k, 5 * k, generator=generator) for k in (1, 2, 4)))


def test_shapes_and_slices_one_by_one() -> None:
    torch.manual_seed(0)
    head = EncoderHead(16, 2)
    logits = head(features())
    assert logits.shape == (2, 2, 3, 16, 20)
    alone = head(Features(*(level[1:, 2:] for level in features())))
    assert torch.allclose(logits[1:, :, 2:], alone, atol=1e-6)


def test_it_starts_from_little_foreground_and_reaches_every_level() -> None:
    torch.manual_seed(0)
    levels = Features(*(level.requires_grad_() for level in features()))
    logits = EncoderHead(16, 1)(levels)
    assert torch.sigmoid(logits).mean() < 0.1
    logits.sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)
