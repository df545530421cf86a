"""Cells from prepared evaluations, with numbers that can be checked by hand."""

import numpy as np
import pytest

from sam2_3dmed.evaluation.statistics import bootstrap_interval_of_mean
from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.tables import task_table

FULL = [0.8, 0.7, 0.9, 0.6, 0.8, 0.7, 0.9]
WORSE = [0.7, 0.6, 0.8, 0.5, 0.7, 0.6, 0.8]  # each by 0.1: Wilcoxon's exact p for 7 pairs with ties is 2 / 2**7


@pytest.fixture
def lung(blobs, tmp_path, request_for):
    """Requests for a data set that has the name of one of the paper's."""
    (tmp_path / "elsewhere" / "Task06_Lung").mkdir(parents=True)
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        (tmp_path / "elsewhere" / "Task06_Lung" / name).symlink_to(blobs / name)

    def make(table: int, **changes):
        return plan_experiment(request_for(table, data=tmp_path / "elsewhere", tasks=("lung",), **changes))

    return make


def rows(experiment) -> dict:
    table = task_table(experiment, experiment.tasks[0])
    return {row.method: row for row in table.rows}


def finish_all(experiment, finish, dice: dict) -> None:
    for run in experiment.runs:
        finish(run, experiment.request.out, dice[run.method])


def test_three_numbers_a_cell(lung, finish):
    experiment = lung(4)
    finish_all(experiment, finish, {"full": FULL, "without_srpp": WORSE})
    full, worse = rows(experiment)["full"], rows(experiment)["without_srpp"]
    cell = full.cells["dice"]
    assert (cell.paper, cell.ours) == (0.7627, pytest.approx(5.4 / 7))
    assert cell.difference == pytest.approx(5.4 / 7 - 0.7627)
    assert cell.interval == bootstrap_interval_of_mean(FULL)
    assert worse.cells["dice"].ours == pytest.approx(4.7 / 7)
    assert worse.cells["hd95"].ours == pytest.approx(10 * (1 - 4.7 / 7))
    assert worse.cells["nsd"].ours == pytest.approx(4.7 / 7)  # at the first tolerance, 2 mm, not at 1


def test_best_is_highest_and_for_distances_lowest(lung, finish):
    experiment = lung(4)
    finish_all(experiment, finish, {"full": FULL, "without_srpp": WORSE})
    found = rows(experiment)
    for metric in ("dice", "iou", "hd95", "nsd"):
        assert found["full"].cells[metric].best
        assert not found["without_srpp"].cells[metric].best
        assert found["full"].cells[metric].paper_best  # 0.7627, 0.6544, 3.51, 0.8197 against 0.7535, ...


def test_what_is_significant(lung, finish):
    experiment = lung(2, weights="x.pt")
    scores = {"full": FULL, "without_srpp": WORSE, "without_boundary": FULL, "without_pretraining": WORSE[::-1]}
    finish_all(experiment, finish, scores)
    found = rows(experiment)
    worse = found["without_srpp"].cells["dice"]
    assert worse.against_full.mean == pytest.approx(-0.1)
    assert worse.against_full.p_value == pytest.approx(2 / 2**7)
    assert worse.p_holm == pytest.approx(3 * 2 / 2**7)  # of three comparisons it is the clearest
    assert worse.significant
    equal = found["without_boundary"].cells["dice"]
    assert (equal.against_full.mean, equal.significant) == (0.0, False)
    assert found["full"].cells["dice"].against_full is None


def test_seeds_are_averaged_by_case(lung, finish):
    experiment = lung(4, seeds=2)
    for run in experiment.runs:
        shift = 0.1 * run.seed if run.method == "full" else 0.0
        finish(run, experiment.request.out, [value + shift for value in WORSE])
    cell = rows(experiment)["full"].cells["dice"]
    assert cell.ours == pytest.approx(4.7 / 7 + 0.05)
    assert cell.seed_std == pytest.approx(np.std([0, 0.1], ddof=1))
    assert cell.interval == pytest.approx(bootstrap_interval_of_mean(np.array(WORSE) + 0.05))
    assert rows(experiment)["without_srpp"].cells["dice"].seed_std == 0
    assert (rows(experiment)["full"].seeds, rows(experiment)["full"].asked) == (2, 2)


def test_what_is_missing_or_does_not_fit_is_told(lung, finish):
    experiment = lung(2, weights="x.pt")
    runs = {run.method: run for run in experiment.runs}
    finish(runs["full"], experiment.request.out, FULL)
    finish(runs["without_srpp"], experiment.request.out, FULL[:6])
    failed = finish(runs["without_boundary"], experiment.request.out, FULL)
    (failed / "model.safetensors").unlink()
    (failed / "failure.txt").write_text("out of memory\n\nmore\n")
    found = rows(experiment)
    assert "case_6 missing" in found["without_srpp"].note
    assert found["without_boundary"].note == "seed 0: failed: out of memory"
    assert found["without_pretraining"].note == "seed 0: not run yet"
    assert all(found[name].seeds == 0 and found[name].cells["dice"].ours is None for name in list(found)[:3])
    assert found["without_srpp"].cells["dice"].paper == 0.7535
    assert not found["full"].cells["dice"].best  # there is nothing that it is better than


def test_costs_are_means_over_seeds(lung, finish):
    experiment = lung(4, seeds=2)
    for run in experiment.runs:
        finish(run, experiment.request.out, FULL, seconds=60.0 if run.seed else 120.0)
    cost = rows(experiment)["full"].cost
    assert (cost["training_seconds"], cost["parameters"], cost["gflop"]) == (90.0, 2e6, 3.5)
    assert cost["training_energy_kj"] is None


def test_a_row_that_is_the_full_method_under_another_name(lung, finish):
    experiment = lung(7, settings=())
    for run in experiment.runs:
        finish(run, experiment.request.out, FULL if run.method == "slices_6" else WORSE)
    found = rows(experiment)
    assert found["slices_6"].cells["dice"].against_full is None  # the paper's D for lung: it is the full method
    assert found["slices_12"].cells["dice"].against_full.mean == pytest.approx(-0.1)
    assert task_table(experiment, experiment.tasks[0]).full == "slices_6"


def test_other_data_has_no_paper_column(request_for, finish):
    experiment = plan_experiment(request_for(4))
    finish_all(experiment, finish, {"full": FULL, "without_srpp": WORSE})
    cell = rows(experiment)["full"].cells["dice"]
    assert (cell.paper, cell.difference, cell.paper_best) == (None, None, False)


def test_what_is_unlike_in_a_row_is_told_below_it(lung):
    universal = "learnt from this data set alone; the published figures are of one model for 14 data sets"
    for settings, names in (((), "learnt"), (("universal:model.text=clip",), "embedded by CLIP")):
        row = rows(lung(1, methods=("universal", "nnformer"), patch_settings=settings))["universal"]
        assert row.note == f"{universal}; names of classes {names}; seed 0: not run yet"
    found = rows(lung(1, methods=("medsam2_boxes", "medsam2")))
    assert found["medsam2_boxes"].note.startswith("gets boxes from the reference on every second slice")
    assert found["medsam2_boxes"].note.endswith("; seed 0: not run yet")
    assert found["medsam2"].note == "seed 0: not run yet"


def test_a_row_with_the_runs_of_the_full_method_says_so(lung, finish):
    experiment = lung(3)  # from scratch, so that there is no pre-training to leave out
    (run,) = experiment.runs
    finish(run, experiment.request.out, FULL)
    found = rows(experiment)
    assert (found["full"].note, found["without_pretraining"].note) == ("", "the same runs as the whole method")
    assert found["without_pretraining"].cells["dice"].ours == found["full"].cells["dice"].ours
    assert found["without_pretraining"].cells["dice"].against_full is None
    assert found["without_pretraining"].cells["dice"].paper == 0.6003
