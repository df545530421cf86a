"""The suggestion by hand, on a curve whose answer is known; and a test on a real network that leaves no trace."""

import csv
import math
from pathlib import Path

import pytest

from sam2_3dmed.errors import TrainingError
from sam2_3dmed.training.trials import RateTest, smooth

RATES = [1e-7 * 1e7 ** (i / 99) for i in range(100)]


def made(loss) -> RateTest:
    losses = [loss(math.log10(rate)) for rate in RATES]
    return RateTest(RATES, losses, losses)


def test_a_tenth_of_the_rate_at_which_the_loss_is_lowest() -> None:
    test = made(lambda x: (x + 2) ** 2)
    assert math.log10(test.suggestion) == pytest.approx(-3, abs=0.05)


def test_a_loss_that_never_falls() -> None:
    with pytest.raises(TrainingError, match="falls at no learning rate"):
        _ = made(lambda x: x).suggestion
    with pytest.raises(TrainingError, match="falls at no learning rate"):
        _ = RateTest([1e-7], [1.0], [1.0]).suggestion


def test_smoothing_begins_with_the_values_themselves() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([1.0, 2.0]) == pytest.approx([1.0, (0.9 + 2) / 1.9])


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    made(lambda x: 1 / (1 + math.exp(4 * (x + 4)))).write(tmp_path)
    with (tmp_path / "learning_rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    assert float(rows[0]["learning_rate"]) == 1e-7
    assert (tmp_path / "learning_rates.png").read_bytes().startswith(b"\x89PNG")
