"""Rows of tables and what they run."""

import pytest

from sam2_3dmed.config import ABLATIONS, BASELINES
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.experiments.methods import FULL, METHODS, ROWS, rows_of
from sam2_3dmed.experiments.paper import paper_table


@pytest.mark.parametrize("number", range(1, 10))
def test_rows_are_those_of_the_paper_in_its_order(number):
    assert list(ROWS[number].values()) == list(paper_table(number).values)


def test_table_3_is_a_part_of_table_2():
    assert ROWS[3].items() <= ROWS[2].items()


def test_every_ablation_and_opponent_can_be_run():
    assert {*ABLATIONS, *BASELINES, FULL} <= set(METHODS)
    assert all(METHODS[name].change == name and METHODS[name].of_ours for name in (*ABLATIONS, *BASELINES))
    assert [name for name, method in METHODS.items() if method.from_scratch] == ["without_pretraining"]
    assert [name for name, method in METHODS.items() if method.caveat] == ["medsam2_boxes", "universal"]


def test_rows_may_be_chosen_and_others_added():
    assert rows_of(1, ["full", "mednext_s", "sam2", "full"]) == {
        "full": "SAM2-3dMed",
        "mednext_s": "MedNeXt-S",
        "sam2": "SAM2 (fine-tuned)",
    }
    assert rows_of(8, ["full"]) == {"full": "lambda1=0.01, lambda2=0.1"}
    assert rows_of(4, None) == {"without_srpp": "w/o SRPP", "full": "SAM2-3dMed"}


def test_all_rows_of_all_tables_can_be_run():
    assert {name for rows in ROWS.values() for name in rows} <= set(METHODS)


def test_a_row_that_is_none():
    with pytest.raises(ConfigError, match=r"^no method 'nnformr'; did you mean 'nnformer'\?$"):
        rows_of(2, ["nnformr"])
