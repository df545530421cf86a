"""The rows of tables and the methods behind them."""

import pytest

from sam2_3dmed.config import ABLATIONS, BASELINES
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.experiments.planning import FULL, OURS, find_method, method_names, paper_table, select_rows


@pytest.mark.parametrize("number", range(1, 10))
def test_rows_are_those_of_the_paper_in_its_order(number):
    rows = select_rows(number)
    assert list(rows.values()) == list(paper_table(number).values)
    assert rows.keys() <= set(method_names())


def test_every_ablation_and_baseline_can_be_run():
    methods = {name: find_method(name) for name in method_names()}
    assert {*ABLATIONS, *BASELINES, FULL} <= set(methods)
    assert all(methods[name].change == name and methods[name].system == OURS for name in (*ABLATIONS, *BASELINES))
    assert [name for name, method in methods.items() if method.caveat] == ["medsam2_boxes", "universal"]


def test_rows_may_be_chosen_and_others_added():
    assert select_rows(1, ["full", "mednext_s", "sam2", "full"]) == {
        "full": "SAM2-3dMed",
        "mednext_s": "MedNeXt-S",
        "sam2": "SAM2 (fine-tuned)",
    }
    assert select_rows(8, ["full"]) == {"full": "lambda1=0.01, lambda2=0.1"}
    assert select_rows(4) == {"without_srpp": "w/o SRPP", "full": "SAM2-3dMed"}


def test_a_row_that_is_none():
    with pytest.raises(ConfigError, match=r"^no method 'nnformr'; did you mean 'nnformer'\?$"):
        select_rows(2, ["nnformr"])
