import csv
import sys

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed.cli.main import main
from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import evaluate_folders
from sam2_3dmed.evaluation.compare import compare_runs
from sam2_3dmed.evaluation.statistics import holm
from sam2_3dmed.volume.volume import Volume

BASE = [0.5, 0.625, 0.75, 0.5, 0.375, 0.25, 0.5, 0.75]


def plus(amount):
    return [value + amount for value in BASE]


def folders(tmp_path, write_scores, runs, metrics=None):
    return [write_scores(tmp_path / name, values, metrics) for name, values in runs.items()]


def test_two_runs_by_hand(tmp_path, write_scores):
    better = [*plus(0.125)[:6], 0.5, 0.625]
    runs = {"base": {"organ": {"dice": BASE}}, "ours": {"organ": {"dice": better}}}
    comparison = compare_runs(folders(tmp_path, write_scores, runs))
    assert (comparison.runs, comparison.baseline, comparison.cases) == (("base", "ours"), "base", 8)
    base, ours = comparison.entries
    assert (base.row, base.defined) == (("class", "organ"), 8)
    assert (base.mean, base.best, base.difference, base.p_adjusted) == (sum(BASE) / 8, False, None, None)
    assert (ours.mean, ours.best) == (sum(better) / 8, True)
    assert ours.difference.mean == 5 * 0.125 / 8
    assert (ours.difference.wins, ours.difference.ties, ours.difference.losses) == (6, 1, 1)
    # seven untied differences of the same size, one of them negative: 2 x (1 + 7) of 2^7 signs are as far out
    assert ours.difference.p_value == ours.p_adjusted == pytest.approx(16 / 128)


def test_holm_over_all_rows_and_runs_of_a_metric(tmp_path, write_scores):
    rng = np.random.default_rng(0)
    runs = {
        name: {
            row: {"dice": rng.normal(shift, 0.1, 12).tolist(), "nsd": rng.normal(shift, 0.1, 12).tolist()}
            for row in ("organ", "tumour", "mean", "union")
        }
        for name, shift in (("a", 0.5), ("b", 0.6), ("c", 0.45))
    }
    comparison = compare_runs(folders(tmp_path, write_scores, runs, {"dice": "higher", "nsd": "higher"}), baseline="b")
    for metric in comparison.metrics:
        of_metric = [entry for entry in comparison.entries if entry.metric == metric]
        entries = [entry for entry in of_metric if entry.run != "b"]
        raw = [entry.difference.p_value for entry in entries]
        assert [entry.p_adjusted for entry in entries] == holm(raw)
        assert len(raw) == 8
        expected = stats.wilcoxon(runs["c"]["union"][metric], runs["b"]["union"][metric]).pvalue
        assert raw[-1] == pytest.approx(expected)
        assert all(entry.difference is None for entry in of_metric if entry.run == "b")


def test_the_mean_over_one_class_is_no_comparison_of_its_own(tmp_path, write_scores):
    one = {row: {"dice": BASE} for row in ("organ", "mean")}
    two = {row: {"dice": BASE} for row in ("organ", "tumour", "mean")}
    paths = folders(tmp_path / "one", write_scores, {"a": one, "b": one})
    assert [entry.row[1] for entry in compare_runs(paths).entries] == ["organ"] * 2
    paths = folders(tmp_path / "two", write_scores, {"a": two, "b": two})
    assert [entry.row[1] for entry in compare_runs(paths).entries[::2]] == ["organ", "tumour", "mean"]


def test_lower_and_zero_are_better(tmp_path, write_scores):
    metrics = {"hd95_mm": "lower", "volume_error_ml": "zero"}
    base = {"organ": {"hd95_mm": [4, 5, 6, 7], "volume_error_ml": [-3, 3, -3, 3]}}
    ours = {"organ": {"hd95_mm": [1, 2, 3, 4], "volume_error_ml": [2, -2, 2, -2]}}
    comparison = compare_runs(folders(tmp_path, write_scores, {"base": base, "ours": ours}, metrics))
    for metric, means in zip(comparison.metrics, [(5.5, 2.5), (3, 2)], strict=True):
        entries = [entry for entry in comparison.entries if entry.metric == metric]
        assert tuple(entry.mean for entry in entries) == means
        assert [entry.best for entry in entries] == [False, True]
        assert entries[1].difference.mean == means[1] - means[0]
        assert entries[1].difference.wins == 4


def test_undefined_values_leave_out_their_pair(tmp_path, write_scores):
    runs = {
        "base": {"organ": {"dice": [None, *BASE[1:]]}},
        "one": {"organ": {"dice": [9, *plus(0.125)[1:7], None]}},
        "two": {"organ": {"dice": plus(-0.125)}},
    }
    entries = compare_runs(folders(tmp_path, write_scores, runs)).entries
    assert [entry.defined for entry in entries] == [6] * 3
    assert entries[1].mean == pytest.approx(entries[0].mean + 0.125)
    one, two = entries[1].difference, entries[2].difference
    assert (one.pairs, one.left_out, one.mean) == (6, 2, 0.125)
    assert (two.pairs, two.left_out, two.mean) == (7, 1, -0.125)


def test_a_metric_undefined_everywhere(tmp_path, write_scores):
    runs = {name: {"organ": {"dice": [None] * 3}} for name in ("base", "ours")}
    comparison = compare_runs(folders(tmp_path, write_scores, runs))
    entry = comparison.entries[1]
    assert (entry.mean, entry.best, entry.p_adjusted, entry.difference.left_out) == (None, False, None, 3)
    assert comparison.rankings[-1].ranks == (1, 1)


def test_ranks_over_metrics_and_classes_by_hand(tmp_path, write_scores):
    """First by Dice beats both in the organ and none in the tumour; last by HD95 loses to both everywhere."""
    metrics = {"dice": "higher", "hd95_mm": "lower"}
    same = {"dice": BASE, "hd95_mm": plus(3)}
    runs = {
        "first": {"organ": {"dice": plus(0.1), "hd95_mm": plus(3)}, "tumour": same},
        "middle": {"organ": same, "tumour": same},
        "last": {"organ": {"dice": BASE, "hd95_mm": plus(5)}, "tumour": {"dice": BASE, "hd95_mm": plus(5)}},
    }
    comparison = compare_runs(folders(tmp_path, write_scores, runs, metrics))
    ranks = {(ranking.metric, ranking.name): ranking.ranks for ranking in comparison.rankings}
    assert ranks == {
        ("dice", "organ"): (1, 2, 2),
        ("dice", "tumour"): (1, 1, 1),
        ("hd95_mm", "organ"): (1, 1, 3),
        ("hd95_mm", "tumour"): (1, 1, 3),
        (None, None): (1, 2, 3),
    }
    overall = comparison.rankings[-1]
    assert overall.scores == (1, 1.25, 2.25)
    assert overall.stability.first == (1, 0, 0)
    assert overall.stability.kendall_tau == 1
    assert comparison.rankings[1].stability.undefined == 1


def test_ranking_wavers_where_the_cases_decide(tmp_path, write_scores):
    gains = [0.1, 0.12, 0.08, 0.11, 0.09, 0.1, -0.2, -0.3]
    ours = [value + gain for value, gain in zip(BASE, gains, strict=True)]
    runs = {"base": {"organ": {"dice": BASE}}, "ours": {"organ": {"dice": ours}}}
    stability = compare_runs(folders(tmp_path, write_scores, runs)).rankings[-1].stability
    assert 0.05 < stability.first[1] - stability.first[0] < 0.95
    assert stability.first[0] + stability.first[1] > 1.05  # a tie, and both are first


def test_baseline_by_name_or_path_and_cases_in_any_order(tmp_path, write_scores):
    runs = {"a": {"organ": {"dice": BASE}}, "b": {"organ": {"dice": plus(0.125)}}}
    paths = folders(tmp_path, write_scores, runs)
    lines = (paths[1] / "cases.csv").read_text().splitlines()
    (paths[1] / "cases.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    for baseline in ("b", str(paths[1])):
        comparison = compare_runs(paths, baseline=baseline)
        assert comparison.baseline == "b"
        difference = comparison.entries[0].difference
        assert (difference.mean, difference.interval) == (-0.125, (-0.125, -0.125))
    with pytest.raises(DataError, match=r"^baseline c: no such run; there are a, b$"):
        compare_runs(paths, baseline="c")


@pytest.fixture
def evaluated(tmp_path):
    """Two real evaluations of eight cases: `shifted` predicts a voxel off, `good` is right but for one voxel."""
    rng = np.random.default_rng(0)
    for number in range(8):
        truth = np.zeros((12, 12, 6), dtype=np.uint8)
        low = rng.integers(1, 3, 3)
        truth[low[0] : low[0] + 6, low[1] : low[1] + 5, low[2] : low[2] + 3] = 1
        truth[low[0] + 1 : low[0] + 3, low[1] + 1 : low[1] + 3, low[2] + 1] = 2
        good = truth.copy()
        good[low[0], low[1], low[2]] = 0
        for name, array in (("labels", truth), ("shifted", np.roll(truth, 1, axis=0)), ("good", good)):
            (tmp_path / name).mkdir(exist_ok=True)
            Volume(array, np.diag([0.8, 0.8, 5, 1])).write(tmp_path / name / f"case_{number}.nii.gz")
    for name in ("shifted", "good"):
        result = evaluate_folders(tmp_path / name, tmp_path / "labels", {1: "organ", 2: "tumour"})
        result.write(tmp_path / "runs" / name / "evaluation")
    return tmp_path / "runs"


def run(*arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sam2-3dmed", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    output, errors = capsys.readouterr()
    return int(stop.value.code or 0), output, errors


def test_command_on_real_evaluations(evaluated, tmp_path, capsys, monkeypatch):
    out = tmp_path / "comparison"
    arguments = ["compare", evaluated / "shifted", evaluated / "good", "-o", out]
    status, output, errors = run(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (status, errors) == (0, "")
    assert output == (out / "comparison.md").read_text() + f"\nWritten to {out}\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.csv",
        "comparison.md",
        "comparison.tex",
        "ranking.csv",
    ]
    with (out / "comparison.csv").open(newline="") as file:
        lines = {(line["metric"], line["class"], line["run"]): line for line in csv.DictReader(file)}
    line = lines["dice", "organ", "good"]
    assert [line[key] for key in ("cases", "pairs", "left_out", "wins", "ties", "losses")] == [
        "8",
        "8",
        "0",
        "8",
        "0",
        "0",
    ]
    assert float(line["p"]) == 2 / 2**8
    # 6 x 5 x 3 voxels less the 4 of the tumour; five of six planes meet, and the tumour takes from both
    assert float(line["mean"]) == pytest.approx(2 * 85 / (86 + 85))
    assert float(lines["dice", "tumour", "shifted"]["mean"]) == pytest.approx(0.5)
    with (out / "ranking.csv").open(newline="") as file:
        overall = [line for line in csv.DictReader(file) if not line["metric"]]
    assert [(line["run"], float(line["rank"])) for line in overall] == [("shifted", 2), ("good", 1)]


def test_command_with_chosen_metrics_and_baseline(evaluated, capsys, monkeypatch):
    arguments = ["compare", evaluated / "shifted", evaluated / "good", "--metric", "dice", "--baseline", "good"]
    status, output, _ = run(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "Baseline: good." in output
    assert [line for line in output.splitlines() if line.startswith("## ")] == [
        "## dice (higher is better)",
        "## Ranking",
    ]
    assert "Written" not in output


def test_command_gives_mistakes_one_line(evaluated, tmp_path, capsys, monkeypatch):
    good, shifted = evaluated / "good", evaluated / "shifted"
    (tmp_path / "file").write_text("")
    tables = (good / "evaluation" / "cases.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "cases.csv").write_text("".join(line for line in tables if not line.startswith("case_3,")))
    (tmp_path / "fewer" / "summary.json").write_bytes((good / "evaluation" / "summary.json").read_bytes())
    result = evaluate_folders(tmp_path / "good", tmp_path / "labels", {1: "organ", 2: "tumour"}, [3])
    result.write(tmp_path / "other_tolerance")
    for arguments, message in [
        ([good], "1 run to compare"),
        ([good, tmp_path / "labels"], "labels: no cases.csv and summary.json"),
        ([good, tmp_path / "fewer"], "fewer: not the cases of good: case_3 missing"),
        ([good, tmp_path / "other_tolerance"], "lacks nsd_3mm; evaluate all runs alike"),
        ([good, shifted, "--metric", "dyce"], "has no metric dyce; it has dice"),
        ([good, shifted, "--baseline", "best"], "baseline best: no such run"),
        ([good, shifted, "-o", tmp_path / "file"], "cannot be written"),
    ]:
        status, output, errors = run("compare", *arguments, capsys=capsys, monkeypatch=monkeypatch)
        assert status == 2
        assert output == ""
        assert message in errors
        assert errors.startswith("Error: ")
        assert errors.count("\n") == 1
