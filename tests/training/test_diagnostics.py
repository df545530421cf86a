"""Gradient norms by hand, and the line that a run which diverges ends with."""

import math
from types import SimpleNamespace

import pytest
import torch

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.training.diagnostics import GradientNorms, gradient_norms


def test_the_norm_of_each_part_that_has_gradients(make_module) -> None:
    module = make_module()
    network = module.network
    assert gradient_norms(module.parts()) == {}
    for part, value in ((network.encoder, 2.0), (network.boundary_to_segmentation, 3.0)):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, value)
    norms = gradient_norms(module.parts())
    assert list(norms) == ["encoder", "fusion"]
    for name, part, value in (("encoder", network.encoder, 2.0), ("fusion", network.boundary_to_segmentation, 3.0)):
        count = sum(parameter.numel() for parameter in part.parameters())
        assert norms[name].item() == pytest.approx(value * math.sqrt(count))


def test_parts_that_are_switched_off_have_none(make_module) -> None:
    module = make_module()
    network = module.network
    network.srpp = network.boundary = network.boundary_to_segmentation = None
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert list(gradient_norms(module.parts())) == ["encoder", "segmentation"]


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(make_module, wrong: str) -> None:
    module = make_module()
    module.latest = {"total": torch.ones(()), "boundary": torch.tensor(math.nan if wrong == "loss" else 0.0)}
    for parameter in module.network.encoder.parameters():
        parameter.grad = torch.full_like(parameter, math.inf if wrong == "gradient" else 1.0)
    trainer = SimpleNamespace(current_epoch=2, global_step=11)
    found = "boundary loss nan" if wrong == "loss" else "encoder gradient inf"
    with pytest.raises(TrainingError, match=f"^epoch 3, step 12: not finite: {found}; the checkpoints are from before"):
        GradientNorms().on_before_optimizer_step(trainer, module, None)
