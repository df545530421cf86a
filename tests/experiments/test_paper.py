"""The packaged numbers of the paper."""

import pytest

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.experiments.planning import METRICS, TASKS, paper_table


def test_a_number_of_each_corner():
    first, last = paper_table(1), paper_table(9)
    assert first.values["nnU-Net"]["lung"]["dice"] == 0.7437
    assert first.values["MedSAM-2"]["pancreas"] == {"dice": 0.5368, "iou": 0.4831, "hd95": 39.1401, "nsd": 0.4736}
    assert last.values["w/ SRPP memory"]["spleen"]["hd95"] == 5.4293


def test_every_cell_has_the_four_metrics():
    for number in range(1, 10):
        table = paper_table(number)
        assert set(table.tasks) <= set(TASKS)
        for row in table.values.values():
            assert set(row) == set(table.tasks)
            assert all(tuple(cell) == METRICS for cell in row.values())


def test_the_full_method_has_the_same_numbers_in_every_table():
    full = paper_table(1).values["SAM2-3dMed"]
    for number in (2, 3, 4, 5, 6, 9):
        assert paper_table(number).values["SAM2-3dMed"] == full
    slices = paper_table(7).values
    assert slices["6 slices"]["lung"] == full["lung"]
    assert all(slices["12 slices"][task] == full[task] for task in ("spleen", "pancreas"))
    assert paper_table(8).values["lambda1=0.01, lambda2=0.1"]["lung"] == full["lung"]


def test_which_tasks_a_table_has():
    assert paper_table(8).tasks == ("lung",)
    assert paper_table(2).tasks == ("lung", "spleen", "pancreas")


def test_no_other_table():
    with pytest.raises(ConfigError, match=r"^the paper has no table 10; it has 1, 2"):
        paper_table(10)


def spread(dice: float, iou: float) -> tuple[float, float]:
    """The least and the largest standard deviation of Dice values in [0, 1] that have these means.

    IoU is D / (2 - D) of each; the extremes have two values, of which one is 1 or one is 0.
    """
    one, zero = 2 - 2 * (1 - dice) / (1 - iou), 2 - dice / iou  # the other value
    share = 1 - (1 - dice) / (1 - one)
    return ((1 - share) * one**2 + share - dice**2) ** 0.5, (dice * zero - dice**2) ** 0.5


def test_the_spread_is_that_of_values_worked_out_by_hand():
    assert spread(0.75, 2 / 3)[0] == pytest.approx(0.25)  # 0.5 and 1, whose IoUs are 1/3 and 1
    assert spread(0.4, 0.8 / 3)[1] == pytest.approx(0.2)  # 0.5 in four of five cases, else 0


def test_what_docs_comparing_says_of_means_of_dice_and_iou():
    cells = {(row, task): cell for row, tasks in paper_table(1).values.items() for task, cell in tasks.items()}
    for cell in cells.values():
        assert cell["dice"] / (2 - cell["dice"]) <= cell["iou"] <= cell["dice"]
    spreads = {key: spread(cell["dice"], cell["iou"]) for key, cell in cells.items()}
    assert spreads["MedSAM-2", "pancreas"] == pytest.approx((0.39, 0.43), abs=0.005)
    others = [found for (row, task), found in spreads.items() if task == "pancreas" and row != "MedSAM-2"]
    assert max(high for _, high in others) < 0.33
    assert spreads["nnFormer", "lung"] == pytest.approx((0.06, 0.09), abs=0.005)
    assert min(low for (row, task), (low, _) in spreads.items() if task == "lung" and row != "nnFormer") > 0.17
