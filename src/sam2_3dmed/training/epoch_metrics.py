"""Means over an epoch that a checkpoint carries, so that a run resumed within an epoch has the same ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, dict[str, float]]


class EpochMeans:
    """Weighted means of values by name; sums stay on the values' device, so that adding waits for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Count a value."""
        value = torch.as_tensor(value).detach().double() * weight
        before = self._sums.get(name)
        self._sums[name] = value if before is None else before.to(value.device) + value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def compute(self, gather: Callable[[State], Sequence[State]] = lambda state: [state]) -> dict[str, float]:
        """The means, in the order in which the names first came.

        gather: what all processes that train together have, not each the same names; all must call this.
        """
        state = merged(gather(self.state_dict()))
        return {name: value / state["weights"][name] for name, value in state["sums"].items() if state["weights"][name]}

    def clear(self) -> None:
        """Begin anew."""
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> State:
        """All that was counted, as plain numbers."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: State) -> None:
        """Go on from a state."""
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])


def merged(states: Sequence[State]) -> State:
    """What several have counted, as one."""
    sums, weights = ({name: 0.0 for state in states for name in state["sums"]} for _ in range(2))
    for state in states:
        for name in state["sums"]:
            sums[name] += state["sums"][name]
            weights[name] += state["weights"][name]
    return {"sums": sums, "weights": weights}
