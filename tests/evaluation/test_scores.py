import json

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.scores import aligned, check_comparable, choose_metrics, read_runs, read_scores

ORGAN = {"organ": {"dice": [0.5, 0.75, None]}}


def test_values_of_a_folder(tmp_path, write_scores):
    values = {"organ": {"dice": [0.5, None], "hd95_mm": [3, 4.5]}, "mean": {"dice": [0.5, 1], "hd95_mm": [1, 2]}}
    folder = write_scores(tmp_path / "run", values, {"dice": "higher", "hd95_mm": "lower"}, empty_masks="as it says")
    scores = read_scores(folder)
    assert (scores.name, scores.folder) == ("run", folder)
    assert scores.cases == ("case_0", "case_1")
    assert scores.rows == (("class", "organ"), ("mean", "mean"))
    assert scores.values[("class", "organ"), "hd95_mm"].tolist() == [3, 4.5]
    assert np.array_equal(scores.values[("class", "organ"), "dice"], [0.5, np.nan], equal_nan=True)
    assert scores.metrics["hd95_mm"]["better"] == "lower"
    assert scores.empty_masks == {"empty_masks": "as it says"}


def test_a_run_is_named_by_its_own_folder(tmp_path, write_scores):
    write_scores(tmp_path / "spleen" / "evaluation", ORGAN)
    for path in (tmp_path / "spleen", tmp_path / "spleen" / "evaluation"):
        scores = read_scores(path)
        assert scores.name == "spleen"
        assert scores.folder == tmp_path / "spleen" / "evaluation"


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a", "b"], ["a", "b"]),
        (["one/a", "two/a", "b"], ["one/a", "two/a", "b"]),
        (["x/one/a", "y/one/a", "two/a"], ["x/one/a", "y/one/a", "two/a"]),
        (["one/a/evaluation", "two/a"], ["one/a", "two/a"]),
        (["a", "a/evaluation"], ["a", "evaluation"]),
    ],
)
def test_names_tell_runs_apart(folders, names, tmp_path, write_scores):
    paths = [write_scores(tmp_path / folder, ORGAN) for folder in folders]
    assert [scores.name for scores in read_runs(paths)] == names


def test_aligned_to_other_cases(tmp_path, write_scores):
    scores = aligned(read_scores(write_scores(tmp_path / "a", ORGAN)), ["case_2", "case_1", "case_0"])
    assert scores.cases == ("case_2", "case_1", "case_0")
    assert scores.values[("class", "organ"), "dice"].tolist()[1:] == [0.75, 0.5]


def test_metrics_are_all_or_those_wanted(tmp_path, write_scores):
    values = {"organ": {"dice": [1], "iou": [1], "nsd": [1]}}
    one = write_scores(tmp_path / "one", values, {"iou": "higher", "dice": "higher"})
    two = write_scores(tmp_path / "two", values, {"dice": "higher", "nsd": "higher"})
    runs = read_runs([one, two])
    assert choose_metrics(runs[:1], None) == ["iou", "dice"]
    assert choose_metrics(runs, ["dice", "dice"]) == ["dice"]
    with pytest.raises(DataError, match=r"one: has no metric nsd; it has iou, dice$"):
        choose_metrics(runs, ["nsd"])
    with pytest.raises(DataError, match="one: lacks nsd; evaluate all runs alike, or choose"):
        choose_metrics(runs, None)


@pytest.fixture
def pair(tmp_path, write_scores):
    """Two runs that may be compared."""
    return [write_scores(tmp_path / name, ORGAN, empty_masks="penalise") for name in ("first", "second")]


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_the_pair_may_be_compared(pair):
    check_comparable(read_runs(pair), ["dice"])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("cases.csv", "0.5", "much", "second/cases.csv: case case_0: 'much' is no finite number"),
        ("cases.csv", "0.5", "inf", "second/cases.csv: case case_0: 'inf' is no finite number"),
        ("cases.csv", "dice", "dyce", "second/cases.csv: has no column dice"),
        ("cases.csv", "case,", "c,", "second/cases.csv: has no column case"),
        ("cases.csv", "case_1", "case_0", "second/cases.csv: case case_0 has organ twice"),
        ("cases.csv", "case_1,class,organ", "case_1,class,tumour", "case case_0 has no line for tumour"),
        ("summary.json", "{", "[", "second/summary.json: broken JSON: "),
        ("summary.json", '"metrics"', '"metric"', "second/summary.json: names no metrics"),
        ("summary.json", '"higher"', '"up"', "second/summary.json: metric dice: better is 'up', expected higher, "),
        (
            "summary.json",
            '"definition": "dice"',
            '"definition": "other"',
            'dice of second: other definition: definition is "other", but "dice" in first',
        ),
        (
            "summary.json",
            '"unit": null',
            '"unit": null, "tolerance_mm": 2',
            "dice of second: other definition: tolerance_mm is 2, but null in first",
        ),
        (
            "summary.json",
            '"penalise"',
            '"nan"',
            'second: other definition: empty_masks is "nan", but "penalise" in first',
        ),
        ("cases.csv", "case_1", "case_7", "second: not the cases of first: case_1 missing"),
        ("cases.csv", "case_2,class,organ,\n", "", "second: not the cases of first: case_2 missing"),
    ],
)
def test_one_line_for_each_mistake(name, old, new, message, pair):
    edit(pair[1], name, old, new)
    with pytest.raises(DataError) as error:
        check_comparable(read_runs(pair), ["dice"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_cases_in_the_second_are_named_too(tmp_path, write_scores):
    first = write_scores(tmp_path / "first", {"organ": {"dice": [1]}})
    second = write_scores(tmp_path / "second", {"organ": {"dice": [1] * 8}})
    with pytest.raises(DataError) as error:
        check_comparable(read_runs([first, second]), ["dice"])
    named = "case_1, case_2, case_3, case_4, case_5 and 2 more missing"
    assert str(error.value) == f"{first}: not the cases of second: {named}"


def test_other_classes(tmp_path, write_scores):
    first = write_scores(tmp_path / "first", {"organ": {"dice": [1]}})
    second = write_scores(tmp_path / "second", {"organ": {"dice": [1]}, "tumour": {"dice": [1]}})
    with pytest.raises(DataError, match="first: not the classes of second: class tumour missing"):
        check_comparable(read_runs([first, second]), ["dice"])


def test_other_labels_of_the_same_cases(tmp_path, write_scores):
    folders = []
    for name, volume in (("first", 12.5), ("second", 13)):
        values = {"organ": {"dice": [1, 1], "truth_mm3": [7, volume]}}
        folder = write_scores(tmp_path / name, values, {"dice": "higher", "truth_mm3": "higher"})
        summary = json.loads((folder / "summary.json").read_text())
        del summary["metrics"]["truth_mm3"]
        (folder / "summary.json").write_text(json.dumps(summary))
        folders.append(folder)
    message = "second: case case_1: other labels: organ has 13 mm3 in second, 12.5 in first$"
    with pytest.raises(DataError, match=message):
        check_comparable(read_runs(folders), ["dice"])


def test_folders_that_hold_no_evaluation(tmp_path, pair):
    with pytest.raises(DataError, match=r"^1 run to compare: at least two are needed$"):
        read_runs(pair[:1])
    with pytest.raises(DataError, match=r"nowhere: no such folder$"):
        read_runs([pair[0], tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"no cases\.csv and summary\.json in it or its evaluation/; evaluate or"):
        read_runs([pair[0], tmp_path])
    with pytest.raises(DataError, match="is the same evaluation as"):
        read_runs([pair[0], pair[0] / ".." / "first"])


def test_empty_tables(pair):
    (pair[0] / "cases.csv").write_text("case,kind,class,dice\n")
    with pytest.raises(DataError, match=r"cases\.csv: has no cases$"):
        read_scores(pair[0])
    (pair[0] / "cases.csv").write_text("case,kind,class,dice\na,mean,mean,1\n")
    with pytest.raises(DataError, match=r"cases\.csv: has no line of kind class$"):
        read_scores(pair[0])
    (pair[0] / "cases.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cases\.csv: cannot be read: it is not text"):
        read_scores(pair[0])
