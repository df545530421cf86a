import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import evaluate_cases, evaluate_folders
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.volume.volume import Volume

SPACING_MM = (0.75, 0.5, 3.0)
LABELS = {1: "organ", 2: "tumour"}


def label_map(seed):
    array = np.zeros((6, 8, 5), dtype=np.uint8)
    array[1:5, 1 + seed : 5 + seed, 1:4] = 1
    array[2:4, 2 + seed : 4 + seed, 2] = 2
    return array


def save(array, path, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(array, np.diag([*SPACING_MM, 1.0]) if affine is None else affine).write(path)


@pytest.fixture
def folders(tmp_path):
    """Three cases; the first is perfect, in the last the prediction misses the tumour."""
    for seed, name in enumerate(["a", "b", "c"]):
        save(label_map(seed), tmp_path / "labels" / f"{name}.nii.gz")
        prediction = np.roll(label_map(seed), seed, axis=0)
        if name == "c":
            prediction[prediction == 2] = 1
        save(prediction, tmp_path / "predictions" / f"{name}.nii.gz")
    return tmp_path / "predictions", tmp_path / "labels"


def test_rows_are_those_of_the_arrays(folders):
    evaluation = evaluate_folders(*folders, LABELS, [1, 3])
    assert [case.name for case in evaluation.cases] == ["a", "b", "c"]
    assert evaluation.scoring.tolerances_mm == (1, 3)
    second = evaluation.cases[1]
    assert second.spacing_mm == pytest.approx(SPACING_MM)
    assert (second.prediction, second.truth) == (folders[0] / "b.nii.gz", folders[1] / "b.nii.gz")
    expected = case_metrics(np.roll(label_map(1), 1, axis=0), label_map(1), LABELS, SPACING_MM, Scoring((1, 3)))
    assert list(second.rows) == expected
    assert evaluation.cases[0].rows[0].scores["dice"] == 1
    assert evaluation.cases[2].rows[1].presence == "missed"


def test_written_files(folders, tmp_path):
    evaluation = evaluate_folders(*folders, LABELS, [1, 2.5])
    out = tmp_path / "runs" / "evaluation"
    evaluation.write(out)
    assert sorted(path.name for path in out.iterdir()) == ["cases.csv", "cases.json", "summary.json"]
    with (out / "cases.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        *("case", "kind", "class", "label"),
        *evaluation.summary()["metrics"],
        *("presence", "lesions_truth", "lesions_found", "lesions_false_positive", "prediction_mm3", "truth_mm3"),
        *("surface", "empty_policy"),
    ]
    assert [(line["case"], line["class"]) for line in lines[:5]] == [
        ("a", "organ"),
        ("a", "tumour"),
        ("a", "mean"),
        ("a", "foreground"),
        ("b", "organ"),
    ]
    organ = evaluation.cases[1].rows[0]
    assert float(lines[4]["nsd_2.5mm"]) == organ.scores["nsd_2.5mm"]
    assert float(lines[4]["hd95_mm"]) == organ.scores["hd95_mm"]
    assert (lines[2]["label"], lines[2]["presence"]) == ("", "")
    cases = json.loads((out / "cases.json").read_text())
    assert cases[1]["rows"][0]["dice"] == organ.scores["dice"]
    assert json.loads((out / "summary.json").read_text()) == evaluation.summary()


def test_summary_of_numbers_and_misses(folders):
    evaluation = evaluate_folders(*folders, LABELS, [1])
    summary = evaluation.summary()
    tumour = summary["results"][1]
    dices = [case.rows[1].scores["dice"] for case in evaluation.cases]
    assert dices[2] == 0
    assert tumour["dice"]["mean"] == pytest.approx(sum(dices) / 3)
    assert tumour["dice"]["median"] == sorted(dices)[1]
    assert tumour["dice"]["std"] == pytest.approx(np.std(dices, ddof=1))
    assert (tumour["missed"], tumour["false_positive"], tumour["absent"]) == (1, 0, 0)
    assert (summary["cases"], summary["missed"], summary["false_positive"]) == (3, 1, 0)
    assert [result["kind"] for result in summary["results"]] == ["class", "class", "mean", "union"]
    assert summary["results"][2]["nsd_1mm"]["mean"] == pytest.approx(
        (summary["results"][0]["nsd_1mm"]["mean"] + tumour["nsd_1mm"]["mean"]) / 2
    )


def test_one_case_has_no_spread(folders):
    predictions, labels = folders
    summary = evaluate_folders(predictions / "b.nii.gz", labels / "c.nii.gz", LABELS).summary()
    assert summary["results"][0]["dice"]["std"] is None
    assert summary["results"][0]["dice"]["interval_95"] is None
    assert summary["cases"] == 1


def test_classes_are_those_found_in_the_labels(folders):
    evaluation = evaluate_folders(*folders)
    assert evaluation.labels == {1: "1", 2: "2"}
    assert evaluation.scoring.tolerances_mm == (2, 1)


def test_classes_from_dataset_json(folders, tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "organ", "2": "tumour"}}')
    assert evaluate_folders(*folders, tmp_path / "dataset.json").labels == LABELS


def test_a_value_that_no_label_file_holds_is_refused(folders):
    save(label_map(0) * 3, folders[0] / "a.nii.gz")
    with pytest.raises(DataError, match=r"predictions.a\.nii\.gz: .*3, 6"):
        evaluate_folders(*folders)


def test_no_classes_to_find(tmp_path):
    save(np.zeros((3, 3, 3), np.uint8), tmp_path / "x.nii")
    with pytest.raises(DataError, match="no label file holds a class"):
        evaluate_folders(tmp_path / "x.nii", tmp_path / "x.nii")


def test_no_cases():
    with pytest.raises(DataError, match="no cases"):
        evaluate_cases([], LABELS)


def test_a_case_twice(folders):
    pair = ("a", folders[0] / "a.nii.gz", folders[1] / "a.nii.gz")
    with pytest.raises(DataError, match="more than one file for a"):
        evaluate_cases([pair, pair], LABELS)


def test_other_shape(folders):
    save(label_map(0)[:-1], folders[0] / "b.nii.gz")
    with pytest.raises(DataError, match=r"b\.nii\.gz: not on the grid of .*: shapes differ"):
        evaluate_folders(*folders, LABELS)


def test_other_affine(folders):
    save(label_map(1), folders[0] / "b.nii.gz", np.diag([-0.75, 0.5, 3.0, 1.0]))
    with pytest.raises(DataError, match=r"b\.nii\.gz: not on the grid of .*: affines differ"):
        evaluate_folders(*folders, LABELS)


def test_missing_file(folders):
    with pytest.raises(DataError, match=r"nowhere\.nii"):
        evaluate_cases([("a", folders[0] / "a.nii.gz", folders[1] / "nowhere.nii")], LABELS)


def test_empty_prediction_costs_the_whole_diagonal(folders):
    save(np.zeros((6, 8, 5), np.uint8), folders[0] / "a.nii.gz")
    organ = evaluate_folders(*folders, LABELS).cases[0].rows[0]
    assert organ.scores["hd95_mm"] == pytest.approx(np.linalg.norm(np.multiply(SPACING_MM, (6, 8, 5))))


def test_write_where_no_folder_can_be(folders, tmp_path):
    evaluation = evaluate_folders(*folders, LABELS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be made: File exists"):
        evaluation.write(tmp_path / "file")


def test_failed_write_leaves_the_old_file_and_nothing_else(folders, tmp_path, monkeypatch):
    evaluation = evaluate_folders(*folders, LABELS)
    evaluation.write(tmp_path / "out")
    before = (tmp_path / "out" / "cases.csv").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"cases\.csv: cannot be written: No space left on device"):
        evaluation.write(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cases.csv",
        "cases.json",
        "summary.json",
    ]
    assert (tmp_path / "out" / "cases.csv").read_bytes() == before


def test_hippocampus_labels_against_themselves(shared_data):
    folder = shared_data / "Task04_Hippocampus"
    paths = sorted((folder / "labelsTr").glob("[!.]*.nii.gz"))[:3]
    evaluation = evaluate_cases([(path.name, path, path) for path in paths], scoring=Scoring((1,)))
    assert evaluation.labels == {1: "1", 2: "2"}
    for result in evaluation.summary()["results"]:
        assert result["dice"]["mean"] == result["nsd_1mm"]["mean"] == 1
        assert result["hd95_mm"]["mean"] == 0


def test_importing_evaluation_loads_nothing_slow():
    slow = {"torch", "nibabel", "pandas", "matplotlib", "scipy.ndimage", "scipy.spatial", "scipy.stats"}
    code = "import sys, sam2_3dmed.evaluation.cases, sam2_3dmed.evaluation.compare\n"
    code += f"sys.exit(', '.join({slow} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_change_nothing(folders, workers):
    seen = []
    evaluation = evaluate_folders(*folders, workers=workers, progress=lambda *state: seen.append(state))
    assert evaluation == evaluate_folders(*folders)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_every_broken_case_is_told(folders):
    save(label_map(0)[:-1], folders[0] / "a.nii.gz")
    (folders[0] / "c.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        evaluate_folders(*folders, LABELS)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 cases cannot be used:"
    assert "a.nii.gz" in lines[1]
    assert "c.nii.gz" in lines[2]


def test_labels_that_are_no_integers(folders):
    save(label_map(0) * np.float32(0.5), folders[0] / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz: label values must be integers, not 0\.5"):
        evaluate_folders(*folders, LABELS)


def test_undefined_is_nothing_in_csv_and_null_in_json(folders, tmp_path):
    evaluate_folders(*folders, LABELS, surface="voxel", empty="nan").write(tmp_path / "out")
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        missed = next(line for line in csv.DictReader(file) if (line["case"], line["class"]) == ("c", "tumour"))
    assert (missed["dice"], missed["hd95_mm"], missed["precision"], missed["presence"]) == ("0.0", "", "", "missed")
    cases = json.loads((tmp_path / "out" / "cases.json").read_text())
    assert cases[2]["rows"][1]["hd95_mm"] is None
    assert cases[2]["scored"] == {"surface": "voxel", "empty_policy": "nan", "tolerances_mm": [2, 1]}
    assert (missed["surface"], missed["empty_policy"]) == ("voxel", "nan")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["surface"]["definition"], summary["empty_policy"]) == ("voxel", "nan")
    assert summary["results"][1]["hd95_mm"]["defined"] == 2


def test_paper_style_has_a_file_of_its_own(folders, tmp_path):
    """The axial axis is the second here, not the third: the body's axis decides."""
    affine = np.array([[0, 0, 3.0, 0], [0.75, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])
    for folder in folders:
        for seed, name in enumerate("abc"):
            save(label_map(seed), folder / f"{name}.nii.gz", affine)
    evaluation = evaluate_folders(*folders, LABELS, [1], with_paper_style=True)
    evaluation.write(tmp_path / "out")
    lines = list(csv.DictReader((tmp_path / "out" / "paper_style.csv").read_text().splitlines()))
    assert list(lines[0]) == [*("case", "class", "averaging", "unit", "dice", "iou", "hd95", "nsd_1", "empty_policy")]
    assert len(lines) == 3 * 2 * 4 * 2
    assert {line["dice"] for line in lines} == {"1.0"}
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["paper_style"]["results"]) == 2 * 4 * 2
    (without := evaluate_folders(*folders, LABELS)).write(tmp_path / "out")  # in place of the other's files
    assert "paper_style" not in without.summary()
    assert not (tmp_path / "out" / "paper_style.csv").exists()


def test_slices_of_paper_style_lie_along_the_axial_axis(tmp_path):
    truth = np.zeros((4, 6, 5), dtype=np.uint8)
    truth[1:3, 1:5, 1:4] = 1
    prediction = truth.copy()
    prediction[:, 4] = 0  # one of its four slices along the second axis
    affine = np.array([[0, 0, 3.0, 0], [0.75, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])
    for name, array in (("p", prediction), ("t", truth)):
        save(array, tmp_path / f"{name}.nii.gz", affine)
    pairs = [("a", tmp_path / "p.nii.gz", tmp_path / "t.nii.gz")]
    rows = evaluate_cases(pairs, {1: "organ"}, with_paper_style=True).cases[0].paper_rows
    dice = {row.averaging: row.scores["dice"] for row in rows}
    assert dice == pytest.approx(
        {"volume": 6 / 7, "slices_with_either": 3 / 4, "slices_with_truth": 3 / 4, "all_slices": 5 / 6}
    )


def test_pairs_from_a_table(folders):
    table = folders[0].parent / "pairs.csv"
    table.write_text("case,prediction,label\nfirst,predictions/b.nii.gz,labels/b.nii.gz\n")
    evaluation = evaluate_folders(table, class_names=LABELS)
    assert [case.name for case in evaluation.cases] == ["first"]
    assert evaluation.cases[0].rows == evaluate_folders(*folders, LABELS).cases[1].rows
