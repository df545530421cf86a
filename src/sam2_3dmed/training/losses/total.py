"""The weighted sum of the terms that a recipe names. Paper: Eq. 6."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sam2_3dmed.config import LossConfig
from sam2_3dmed.errors import ConfigError, suggest
from sam2_3dmed.model.network import Prediction
from sam2_3dmed.training.losses.registry import TERMS, LossInputs


class LossTerms(NamedTuple):
    """The loss of some slabs."""

    total: Tensor
    """The weighted sum of the terms."""
    terms: Mapping[str, Tensor]
    """By name, unweighted; the term of a part that is switched off is 0."""

    @classmethod
    def mean(cls, groups: Sequence[Self], shares: Sequence[float]) -> Self:
        """The mean over groups of slabs. shares: of each group in the batch, with the sum 1."""

        def mean(values: Sequence[Tensor]) -> Tensor:
            return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum()

        terms = {name: mean([group.terms[name] for group in groups]) for name in groups[0].terms}
        return cls(mean([group.total for group in groups]), terms)


class TotalLoss:
    """The loss of a recipe.

    Raises:
        ConfigError: `loss.terms` names an unknown term.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        for name in config.terms:
            if name not in TERMS:
                raise ConfigError(f"loss.terms: no term {name!r}; {suggest(name, TERMS)}")

    def __call__(self, prediction: Prediction, masks: Tensor, positions: Tensor) -> LossTerms:
        """The loss of slabs of equal length; see `LossInputs` for the arguments."""
        inputs = LossInputs(prediction, masks, positions, self.config)
        terms = {name: TERMS[name](inputs) for name in self.config.terms}
        total = inputs.zero
        for name, weight in self.config.terms.items():
            total = total + weight * terms[name]
        return LossTerms(total, terms)
