"""Files of text: JSON, YAML, CSV and lists. What is read must be what Python's own readers find in the file."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sam2_3dmed.config import NetworkConfig, Plan, RunConfig, read_recipe
from sam2_3dmed.data.dataset import MedicalDataset, read_dataset
from sam2_3dmed.data.plan import read_plan_yaml
from sam2_3dmed.data.splits import Split
from sam2_3dmed.dicom.codes import read_codes
from sam2_3dmed.evaluation.cases import evaluate_cases, read_class_names, read_pairs
from sam2_3dmed.evaluation.scores import read_scores
from sam2_3dmed.inference.inputs import read_list
from sam2_3dmed.inference.interface import Auxiliary
from sam2_3dmed.report.contents import read_run
from sam2_3dmed.run.run_config import Sam2Record
from sam2_3dmed.run.run_folder import read_record, remembered_data
from sam2_3dmed.training.monitoring import read_curves
from sam2_3dmed.training.trials import read_schedule
from sam2_3dmed.volume.label_scheme import LabelScheme

from .images import label
from .kinds import Kind, holds_all_of, json_of, same, text_of, yaml_of

LABELS = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
PLAN = {
    "dataset": "x",
    "channels": [{"name": "CT", "normalisation": "fixed", "low": -100.5, "high": 200}],
    "labels": {1: "liver", 2: "tumour"},
    "slicing_axis": "coronal",
    "slab_slices": 6,
    "nsd_tolerance_mm": 2.5,
}


def text_kind(
    file: str,
    content: Any,
    read: Callable[[Path], Any],
    check: Callable[[Path, Any], None],
    prepare: Callable[[Path], object] = lambda folder: None,
) -> Kind:
    """Of a file of this content, JSON or YAML by its name unless it is text already."""

    def make(folder: Path) -> None:
        prepare(folder)
        text = content
        if not isinstance(content, str):
            text = json.dumps(content) if file.endswith(".json") else yaml.safe_dump(content, sort_keys=False)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")

    packing = {".json": "json", ".yaml": "yaml"}.get(Path(file).suffix, "text")
    return Kind(
        file, make, lambda folder: read(folder / file), lambda folder, found, _: check(folder / file, found), packing
    )


def data_set(content: dict[str, Any]) -> Kind:
    def prepare(folder: Path) -> None:
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir()
        for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"):
            (folder / name).touch()

    def check(file: Path, found: MedicalDataset) -> None:
        given = json_of(file)
        check_labels(file, found.labels)
        assert len(set(found.names)) == len(found.names) > 0
        for case in found.cases:
            assert case.label is not None
            assert all(part.is_file() and part.resolve().is_relative_to(file.parent.resolve()) for part in case.files)
        channels = given.get("channel_names", given.get("modality"))
        assert sorted(found.channels) == sorted(map(str, channels.values() if isinstance(channels, dict) else channels))
        if "channel_names" not in given:
            listed = [entry for entry in given["training"] if isinstance(entry, dict) and entry.get("label")]
            assert [case.label for case in found.cases] == sorted(file.parent / entry["label"] for entry in listed)

    base = (
        {"labels": REGIONS, "regions_class_order": [1, 2], "name": "x"} if "dataset" in content else {"labels": LABELS}
    )
    return text_kind("dataset.json", base | content, lambda file: read_dataset(file.parent), check, prepare)


def check_labels(file: Path, found: LabelScheme) -> None:
    """Each class has a name and the values of the file; a value is a whole number, in any way that it is written."""
    given = json_of(file)["labels"]
    pairs = {}
    for key, item in given.items():
        try:
            pairs[(int(float(key)),)] = item
        except (ValueError, OverflowError):
            pairs[tuple(sorted({int(float(part)) for part in (item if isinstance(item, list) else [item])}))] = key
    for value in found:
        members = found.members(value)
        assert 0 < min(members) <= max(members) < 2**16
        assert found[value] in map(str, (*given, *given.values()))
        if all(isinstance(part, str) for part in pairs.values()):
            assert pairs[members] == found[value], f"{members}: {found[value]!r} of {pairs}"


def check_plan(file: Path, plan: Plan) -> None:
    holds_all_of(plan.model_dump(), yaml_of(file))


def check_recipe(file: Path, recipe: RunConfig) -> None:
    given = yaml_of(file) or {}
    given.pop("preset", None)
    holds_all_of(recipe.model_dump(mode="json"), given)


def complete_record() -> dict[str, Any]:
    model = NetworkConfig(size="nano", image_size=64, channels=64, pointer_time=True, no_memory_token=True)
    recipe = RunConfig(model=model)
    record = Sam2Record(plan=Plan(**PLAN), recipe=recipe, weights="none", versions={"torch": "2"})
    return record.model_dump(mode="json")


def check_record(file: Path, record: Sam2Record) -> None:
    holds_all_of(record.model_dump(mode="json"), yaml_of(file))


def check_split(file: Path, split: Split) -> None:
    given = json_of(file)
    for part in ("train", "validation", "test"):
        assert list(getattr(split, part)) == sorted(given[part])


def check_codes(file: Path, codes: dict[str, Any]) -> None:
    assert {name: list(code) for name, code in codes.items()} == json_of(file).get("codes", {})


def check_positions(file: Path, found: Auxiliary) -> None:
    slabs = json_of(file)["slabs"]
    assert len(slabs) == len(found.positions)
    for slab, positions in zip(slabs, found.positions, strict=True):
        assert list(positions.slices) == list(slab["slices"])
        assert np.array_equal(positions.relative_position, np.array(slab["relative_position"], np.float32))


def rows_of(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file under the names of its columns."""
    rows = [
        row for row in csv.reader(io.StringIO(text_of(file), newline=""), skipinitialspace=True, strict=True) if row
    ]
    return [dict(zip(rows[0], [*row, *[""] * len(rows[0])], strict=False)) for row in rows[1:]]


def check_list(file: Path, paths: list[Path]) -> None:
    if file.suffix == ".csv":
        lines = [row["input"] for row in rows_of(file)]
    else:
        lines = [line for line in text_of(file).split("\n") if not line.startswith("#")]
    assert list(map(str, paths)) == [str(file.parent / line.strip()) for line in lines if line.strip()]


def check_pairs(file: Path, pairs: list[Any]) -> None:
    rows = rows_of(file)
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        assert pair.prediction == file.parent / row["prediction"]
        assert pair.truth == file.parent / row["label"]
        assert pair.name == (row.get("case") or pair.name)
        assert pair.name
    assert len({pair.name for pair in pairs}) == len(pairs)


def check_curves(file: Path, found: list[dict[str, Any]]) -> None:
    rows = rows_of(file)
    assert [same(row, given) for row, given in zip(found, rows, strict=True)] == [True] * len(rows)


def evaluate(folder: Path) -> None:
    for name in ("a", "b"):
        label().write(folder / f"{name}.nii.gz")
    pairs = [(name, folder / f"{name}.nii.gz", folder / f"{name}.nii.gz") for name in ("a", "b")]
    evaluate_cases(pairs, {1: "liver", 2: "tumour"}, workers=0).write(folder / "evaluation")
    for name in ("cases.json", "summary.json"):  # without the folder of this test and the date
        file = folder / "evaluation" / name
        text = json.dumps(_lean(json.loads(file.read_text())))
        file.write_text(text.replace(str(folder), "data"))


def _lean(content: Any) -> Any:
    """The same keys with fewer metrics, so that more mutations meet what is read."""
    kept = ("dice", "hd95_mm")
    if isinstance(content, list):
        return [row | {"rows": [_row(one) for one in row["rows"]]} for row in content]
    lean = {key: content[key] for key in ("metrics", "empty_policy", "empty_masks", "results") if key in content}
    lean["metrics"] = {name: content["metrics"][name] for name in kept}
    return lean | {"results": [_row(row) for row in content["results"]]}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("kind", "class", "label", "dice", "hd95_mm") if key in row}


def score_kind(file: str) -> Kind:
    """Of the tables of an evaluation, as `compare` reads them."""

    def make(folder: Path) -> None:
        evaluate(folder)
        if file.endswith(".csv"):
            rows = rows_of(folder / "evaluation" / file)
            columns = ("case", "kind", "class", "dice", "hd95_mm", "truth_mm3")
            lines = [",".join(columns), *(",".join(row[column] for column in columns) for row in rows)]
            (folder / "evaluation" / file).write_text("\n".join(lines) + "\n")

    def check(folder: Path, scores: Any, _: Any) -> None:
        rows = {(row["case"], row["kind"], row["class"]): row for row in rows_of(folder / "evaluation" / "cases.csv")}
        assert len(rows) == len(scores.cases) * len(scores.rows)
        for (row, column), values in scores.values.items():
            for case, value in zip(scores.cases, values, strict=True):
                text = rows[case, *row][column].strip()
                assert math.isnan(value) if text in ("", "nan", "NaN") else value == float(text), (
                    f"{case} {row} {column}"
                )
        assert scores.metrics == json_of(folder / "evaluation" / "summary.json")["metrics"]

    return Kind(f"evaluation/{file}", make, read_scores, check, "json" if file.endswith("json") else "text")


def run_kind(file: str) -> Kind:
    """Of a run folder, as `report` reads it."""

    def make(folder: Path) -> None:
        evaluate(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(complete_record(), sort_keys=False))
        (folder / "curves.csv").write_text("epoch,step,train/total,validation/dice\n0,5,1.5,\n1,10,0.7,0.25\n")

    def check(folder: Path, found: Any, _: Any) -> None:
        if found.summary:
            assert same(dict(found.summary), json_of(folder / "evaluation" / "summary.json"))
            details = json_of(folder / "evaluation" / "cases.json")
            assert [case.name for case in found.cases] == [detail["case"] for detail in details]
            assert [list(case.rows) for case in found.cases] == [detail["rows"] for detail in details]
            for case in found.cases:
                assert Path(case.name).name == case.name

    return Kind(file, make, read_run, check, "json" if file.endswith("json") else "text")


_FILES = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
_SLAB = {"slices": [0, 1], "relative_position": [[0.0, 1.0], [-1.25, 0.0]]}
KINDS = {
    "data-set-msd": data_set({"modality": {"0": "CT"}, "training": [_FILES]}),
    "data-set-nnunet": data_set({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}),
    "data-set-regions": data_set(
        {"channel_names": ["CT"], "dataset": {"a": {"images": [_FILES["image"]], "label": _FILES["label"]}}}
    ),
    "class-names": text_kind("names.json", {"labels": LABELS}, read_class_names, check_labels),
    "codes": text_kind("codes.json", {"codes": {"liver": ["10200004", "SCT", "Liver"]}}, read_codes, check_codes),
    "split": text_kind(
        "split.json", {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}, Split.read, check_split
    ),
    "plan": text_kind("plan.yaml", PLAN, read_plan_yaml, check_plan),
    "recipe": text_kind(
        "recipe.yaml",
        {
            "preset": "paper",
            "training": {"epochs": 5, "learning_rate": 0.001, "precision": "32"},
            "loss": {"terms": {"dice": 1}},
            "model": {"srpp": False, "size": "nano"},
        },
        lambda file: read_recipe(str(file), from_scratch=True),
        check_recipe,
    ),
    "config": text_kind("config.yaml", complete_record(), lambda file: read_record(file.parent), check_record),
    "schedule": text_kind(
        "schedule.json",
        {"epochs": 5, "batches": 6, "seconds": {"slabs": 0.5}},
        read_schedule,
        lambda file, found: holds_all_of(json_of(file), {"epochs": found.epochs, "batches": found.batches}),
    ),
    "data": text_kind(
        "data.json",
        {"folder": "some/data"},
        lambda file: remembered_data(file.parent),
        lambda file, found: holds_all_of({"folder": str(found)}, {"folder": str(Path(json_of(file)["folder"]))}),
    ),
    "positions": text_kind(
        "a_positions.json",
        {"unit": "slices", "slabs": [_SLAB, _SLAB]},
        lambda file: Auxiliary.read(file.parent, "a"),
        check_positions,
    ),
    "list": text_kind("list.txt", "# scans\na.nii.gz\n\nb/c.nii.gz\n", read_list, check_list),
    "list-csv": text_kind("list.csv", 'input,more\na.nii.gz,1\n"b, c.nii.gz",\n', read_list, check_list),
    "pairs": text_kind("pairs.csv", "case,prediction,label\nx,a.nii,b.nii\n,c.nii,d.nii\n", read_pairs, check_pairs),
    "curves": text_kind("curves.csv", "epoch,step,train/total\n0,5,1.5\n1,10,0.7\n", read_curves, check_curves),
    "scores": score_kind("cases.csv"),
    "scores-summary": score_kind("summary.json"),
    "report-cases": run_kind("evaluation/cases.json"),
    "report-summary": run_kind("evaluation/summary.json"),
    "report-curves": run_kind("curves.csv"),
}
