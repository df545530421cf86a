"""Muon: a step of equal size in every direction of a weight matrix, for training from scratch.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the rate as in Liu et al. 2025, arXiv 2502.16982, so that
one rate and one weight decay serve matrices and all else. torch has a Muon of its own, which takes no kernels of
convolutions, computes in bf16, for which few CPUs have instructions, and is a second optimiser beside AdamW.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes singular values from 0..1 near to 1 quickest (Jordan et al.)."""
_ITERATIONS = 5
_RMS = 0.2
"""Of an update's entries, which is about that of AdamW's (Liu et al.)."""


class Muon(AdamW):
    """AdamW, but groups with `matrices=True` go by Muon, with Nesterov's momentum.

    Such a group's parameters have two dimensions or more; the first counts as rows, the others together as columns.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **options: Any) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        loss = None
        if closure is not None:  # first, since it may look at the groups: to set gradients to zero, to clip them
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.flatten(1).shape].append(parameter)
        for (rows, columns), alike in by_shape.items():
            directions = orthogonalised(torch.stack([self._momentum(parameter).flatten(1) for parameter in alike]))
            length = group["lr"] * _RMS * max(rows, columns) ** 0.5
            for parameter, direction in zip(alike, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.view_as(parameter), alpha=length)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The mean of the gradients so far, a step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(state["momentum"], self.momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, R, C) -> the same with all singular values between about 0.7 and 1.2, by Newton and Schulz's iteration."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    found = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        squares = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), found, beta=a)
    return found if matrices.shape[1] <= matrices.shape[2] else found.mT
