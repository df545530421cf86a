"""Muon beside torch's own, beside AdamW for what is no matrix, and across a restart."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.training.optimizer import Muon, orthogonalised


def singular(matrices: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrices)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_all_directions_become_about_equally_long_and_stay_where_they_are(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert (singular(matrices).amax(dim=1) / singular(matrices).amin(dim=1)).min() > 3
    found = orthogonalised(matrices)
    assert found.shape == matrices.shape
    assert singular(found).min() > 0.6
    assert singular(found).max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ found @ right.mT
    assert torch.allclose(turned, torch.diag_embed(turned.diagonal(dim1=1, dim2=2)), atol=1e-4)


def test_of_a_matrix_of_zeros_nothing_comes() -> None:
    assert not orthogonalised(torch.zeros(1, 16, 16)).any()


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def learn(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    """Gradients are a function of the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_it_does_what_torchs_own_does_in_bf16() -> None:
    ours, theirs = weights((16, 48), (48, 16), (16, 48)), weights((16, 48), (48, 16), (16, 48))
    before = [parameter.detach().clone() for parameter in ours]
    learn(Muon([{"params": ours, "matrices": True}], lr=0.1, weight_decay=0.5), ours, range(3))
    learn(torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"), theirs, range(3))
    for mine, other, first in zip(ours, theirs, before, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - first).norm()


def test_what_is_no_matrix_goes_by_adamw() -> None:
    ours, theirs = weights((16, 16), (5,)), weights((16, 16), (5,))
    learn(Muon([{"params": ours}], lr=0.1, weight_decay=0.5), ours, range(3))
    learn(torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.5), theirs, range(3))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_a_kernels_inputs_and_places_are_columns() -> None:
    (flat,) = weights((16, 4 * 9))
    kernel = nn.Parameter(flat.detach().clone().view(16, 4, 3, 3))
    for parameter in (flat, kernel):
        learn(Muon([{"params": [parameter], "matrices": True}], lr=0.1), [parameter], range(2))
    assert torch.equal(kernel.flatten(1), flat)


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = weights((16, 16), (16, 16))
    before = other.detach().clone()
    learn(Muon([{"params": [one, other], "matrices": True}], lr=0.1, weight_decay=0.5), [one], range(2))
    assert torch.equal(other, before)


def test_a_state_that_is_loaded_goes_on_as_if_never_stopped() -> None:
    straight = weights((16, 20), (7,))
    optimizer = grouped(straight)
    learn(optimizer, straight, range(2))
    resumed = copy.deepcopy(straight)
    again = grouped(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(optimizer, straight, range(2, 4))
    learn(again, resumed, range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(straight, resumed, strict=True))


def test_a_closure_sees_all_groups() -> None:
    """A closure may set gradients to zero, compute, and clip, all within the step."""
    plain, closed = weights((16, 20), (7,)), weights((16, 20), (7,))
    learn(grouped(plain), plain, range(3))
    optimizer = grouped(closed)
    for step in range(3):
        given = weights((16, 20), (7,))  # of the same shapes
        learn(torch.optim.SGD(given, lr=0.0), given, range(step, step + 1))

        def closure(given: list[nn.Parameter] = given) -> Tensor:
            optimizer.zero_grad()
            loss = sum((one * other.grad).sum() for one, other in zip(closed, given, strict=True))
            loss.backward()
            return loss

        assert optimizer.step(closure).requires_grad
    assert all(torch.equal(one, other) for one, other in zip(plain, closed, strict=True))


def grouped(parameters: list[nn.Parameter]) -> Muon:
    matrix, vector = parameters
    return Muon([{"params": [vector]}, {"params": [matrix], "matrices": True}], lr=0.1, fused=True)
