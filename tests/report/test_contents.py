"""What a run folder holds is read; what is missing is a note, what is broken is one line."""

import json
import shutil
from pathlib import Path

import pytest

from sam2_3dmed.errors import DataError, WeightsError
from sam2_3dmed.report.contents import CaseEntry, chosen_cases, read_run


def entry(name: str, score: float | None, found: bool = True) -> CaseEntry:
    file = Path("mask.nii.gz") if found else None
    return CaseEntry(name, file, file, (), ({"kind": "mean", "class": "mean", "dice": score},))


def ranks(*cases: CaseEntry, better: str = "higher") -> dict[str, str]:
    return {rank: case.name for rank, case in chosen_cases(cases, "dice", better).items()}


class TestChosenCases:
    def test_best_median_and_worst(self) -> None:
        cases = [entry(name, score) for name, score in zip("abcde", (0.5, 0.9, 0.1, 0.7, 0.3), strict=True)]
        assert ranks(*cases) == {"best": "b", "median": "a", "worst": "c"}
        assert ranks(*cases, better="lower") == {"best": "c", "median": "a", "worst": "b"}

    def test_signed_errors_are_best_at_zero(self) -> None:
        cases = [entry("a", -5), entry("b", 0.5), entry("c", 3)]
        assert ranks(*cases, better="zero") == {"best": "b", "median": "c", "worst": "a"}

    def test_fewer_than_three(self) -> None:
        assert ranks() == {}
        assert ranks(entry("a", 0.5)) == {"only": "a"}
        assert ranks(entry("a", 0.5), entry("b", 0.6)) == {"best": "b", "worst": "a"}

    def test_what_cannot_be_ranked_or_drawn_is_left_out(self) -> None:
        assert ranks(entry("a", None), entry("b", 0.6), entry("c", 0.1, found=False)) == {"only": "b"}

    def test_equal_scores_go_by_name(self) -> None:
        assert ranks(entry("b", 0.5), entry("a", 0.5)) == {"best": "a", "worst": "b"}


def test_everything_is_found_where_training_left_it(run: Path, data: Path, hostile: str) -> None:
    contents = read_run(run)
    assert contents.notes == []
    assert contents.curves["train/total"] == [1.5, 0.7]
    assert contents.curves["validation/dice"] == [None, 0.5]
    assert "hd95_mm" in contents.metrics
    case = contents.cases[0]
    assert case.name == hostile
    assert case.prediction == run / "predictions" / f"{hostile}.nii.gz"
    assert case.images == (data.resolve() / "imagesTr" / f"{hostile}.nii.gz",)
    assert 0 < case.score("dice") < 1


def test_a_run_that_moved_is_read_with_the_data_that_is_named(
    run: Path, data: Path, hostile: str, tmp_path: Path
) -> None:
    (run / "data.json").write_text('{"folder": "/nowhere/data"}')
    details = json.loads((run / "evaluation" / "cases.json").read_text())
    for detail in details:
        detail |= {"truth": f"/nowhere/{detail['case']}.nii.gz", "prediction": f"runs/old/{detail['case']}.nii.gz"}
    (run / "evaluation" / "cases.json").write_text(json.dumps(details))
    lost = read_run(run)
    assert lost.notes == ["/nowhere/data: no such folder; report --data DATA shows the images"]
    assert lost.cases[0].truth is None
    assert lost.cases[0].prediction == run / "predictions" / f"{hostile}.nii.gz"
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    found = read_run(run, moved)
    assert found.notes == []
    assert found.cases[0].truth == moved / "labelsTr" / f"{hostile}.nii.gz"
    with pytest.raises(DataError, match="no such folder"):
        read_run(run, tmp_path / "nothing")


def test_what_is_missing_is_noted(run: Path) -> None:
    (run / "data.json").unlink()
    (run / "curves.csv").unlink()
    contents = read_run(run)
    assert [note.split(": ")[1] for note in contents.notes] == [
        "no such file, so there are no training curves",
        "the run does not say where its data set is; report --data DATA shows the images",
    ]
    assert contents.cases[0].truth is not None
    assert contents.cases[0].images == ()
    shutil.rmtree(run / "evaluation")
    contents = read_run(run)
    assert contents.cases == ()
    assert contents.metrics == {}
    assert any("train --test writes one" in note for note in contents.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluation/cases.json", "{"),
        ("evaluation/cases.json", '[{"case": "a"}]'),
        ("evaluation/cases.json", '[{"case": "a", "prediction": "p", "truth": "t", "rows": [{"dice": 1}]}]'),
        ("evaluation/summary.json", "[1]"),
        ("curves.csv", "epoch,train/total\n0,much\n"),
        ("data.json", "{}"),
    ],
)
def test_a_broken_file_is_named(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(DataError, match=Path(name).name):
        read_run(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a run folder"):
        read_run(tmp_path)
