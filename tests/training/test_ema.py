"""The average by hand, on one weight that loses 1 in every step and one that is frozen."""

import pytest
import torch
from torch import nn

from sam2_3dmed.training.optimizer import EMA


class Countdown(nn.Module):
    """Its weight is 10, 9, 8, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)


def averages(decay: float, steps: int) -> list[float]:
    """The definition: of each step the average keeps `decay`, the first steps less."""
    average, found = 10.0, []
    for step in range(1, steps + 1):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * (10.0 - step)
        found.append(average)
    return found


def count_down(module: Countdown, ema: EMA, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            module.weight -= 1
        ema.update(step)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.9, 0.999])
def test_the_average_is_in_place_for_a_while(decay: float) -> None:
    """After four steps 0.999 alone would leave 99% of the first weight's value; here the average has followed."""
    module = Countdown()
    ema = EMA(module, decay)
    count_down(module, ema, range(1, 5))
    with ema.in_place():
        assert module.weight.item() == pytest.approx(averages(decay, 4)[-1])
    assert module.weight.item() == 6
    count_down(module, ema, range(5, 9))
    assert ema.weights["weight"].item() == pytest.approx(averages(decay, 8)[-1])


def test_what_is_frozen_is_not_averaged_and_keeps_its_last_bit() -> None:
    """With 0.999 x + 0.001 x in every step it would not."""
    module = Countdown()
    ema = EMA(module, 0.999)
    count_down(module, ema, range(1, 100))
    assert ema.weights.keys() == {"weight"}
    with ema.in_place():
        assert torch.equal(module.frozen, torch.tensor(0.1))


def test_an_error_in_between_gives_the_weights_back() -> None:
    module = Countdown()
    ema = EMA(module, 0.5)
    count_down(module, ema, range(1, 3))
    with pytest.raises(KeyError), ema.in_place():
        raise KeyError
    assert module.weight.item() == 8
