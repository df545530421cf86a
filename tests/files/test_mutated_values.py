"""Each value of each file in turn becomes another: what comes is a result or a line of ours, never another error."""

import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from sam2_3dmed.config import RunConfig, read_recipe
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.plan import read_plan_yaml
from sam2_3dmed.data.splits import Split
from sam2_3dmed.dicom.codes import read_codes
from sam2_3dmed.errors import UserError
from sam2_3dmed.evaluation.cases import evaluate_cases, read_class_names, summary_table
from sam2_3dmed.evaluation.compare import compare_runs, markdown
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import Auxiliary
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.report.build import page_html
from sam2_3dmed.report.contents import read_run
from sam2_3dmed.run.run_folder import read_record, remembered_data
from sam2_3dmed.training.trials import read_schedule

SOME_OR_ALL = [11, pytest.param(1, marks=pytest.mark.long)]
OTHERS: list[Any] = [
    *(
        None,
        True,
        5,
        -1,
        0.5,
        1e308,
        float("inf"),
        float("nan"),
        10**90,
        "",
        "x" * 300,
        "a\0b",
        "../..",
        "/",
        "$\\frac$",
    ),
    *([], [[]], [5], ["x"], {}, {"": {}}, {"a": 5}, [{}], "\ud800", "\u202e", "²"),
]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values; of a long list its first two."""
    yield path
    inner = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = value if len(path) == 1 else changed(content[path[0]], path[1:], value)
    return copy


def without(content: Any, path: tuple[Any, ...]) -> Any:
    copy = content.copy()
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(content[path[0]], path[1:])
    return copy


def mutations(content: Any) -> Iterator[Any]:
    for path in places(content):
        yield from (changed(content, path, value) for value in OTHERS)
        if path:
            yield without(content, path)
            if isinstance(path[-1], str):
                yield changed(without(content, path), (*path[:-1], "x" * 300), 5)


def walk(file: Path, content: Any, write: Callable[[Any], str], read: Callable[[], object], *, every: int = 1) -> None:
    """Read each mutation, or one of so many. The file as it was can be read before and after."""
    file.write_text(write(content))
    read()
    done = 0
    for mutation in islice(mutations(content), 0, None, every):
        file.write_text(write(mutation))
        done += 1
        try:
            read()
        except UserError as error:
            assert len(str(error)) < 2000, str(error)[:300]  # noqa: PT017 - most mutations raise, not all
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, of {write(mutation)[:500]}") from error
    assert done > len(OTHERS)
    file.write_text(write(content))
    read()


def yaml_text(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


@pytest.fixture
def scored(blobs: Path, write_random_run, tmp_path: Path) -> Path:
    """A run with an evaluation of two cases, and a second such folder beside it."""
    folder = write_random_run(tmp_path / "run")
    files = [blobs / "labelsTr" / f"blob_0{number}.nii.gz" for number in (0, 1)]
    pairs = [(file.name[:7], file, file) for file in files]
    for place in (folder, tmp_path / "other"):
        evaluate_cases(pairs, {1: "organ 1", 3: "organ 2"}, workers=0).write(place / "evaluation")
    (folder / "curves.csv").write_text("epoch,step,train/total\n0,5,1.5\n1,10,0.7\n")
    return folder


@pytest.mark.parametrize("layout", ["MSD", "nnU-Net", "nnU-Net with files"])
def test_data_set(layout: str, blobs: Path, tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / name).touch()
    files = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    content: dict[str, Any] = {"labels": {"background": 0, "liver": 1}, "name": "x", "codes": {"liver": list("abc")}}
    content |= {
        "MSD": {"modality": {"0": "CT"}, "training": [files]},
        "nnU-Net": {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"},
        "nnU-Net with files": {
            "channel_names": {"0": "CT"},
            "dataset": {"a": {"images": [files["image"]], "label": files["label"]}},
        },
    }[layout]
    file = tmp_path / "dataset.json"
    for read in (lambda: read_dataset(tmp_path), lambda: read_codes(file), lambda: read_class_names(file)):
        walk(file, content, json.dumps, read)


def test_split_and_schedule_and_data(tmp_path: Path) -> None:
    split = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    walk(tmp_path / "split.json", split, json.dumps, lambda: Split.read(tmp_path / "split.json"))
    schedule = {"epochs": 5, "batches": 6, "seconds": {}}
    walk(tmp_path / "schedule.json", schedule, json.dumps, lambda: read_schedule(tmp_path / "schedule.json"))
    walk(tmp_path / "data.json", {"folder": "data"}, json.dumps, lambda: remembered_data(tmp_path))


def test_positions(tmp_path: Path) -> None:
    slab = {"slices": [0, 1], "relative_position": [[0.0, 1.0], [-1.0, 0.0]]}
    content = {"unit": "slices", "slabs": [slab, slab]}
    walk(tmp_path / "a_positions.json", content, json.dumps, lambda: Auxiliary.read(tmp_path, "a"))


def test_manifest(tmp_path: Path) -> None:
    manifest, item = Manifest(tmp_path, "run", "checksum"), Input("a", (tmp_path / "a.nii.gz",))
    (tmp_path / "a.nii.gz").write_bytes(b"scan")
    manifest.note(item, manifest.decisive(item), [tmp_path / "a.nii.gz"], 1.0)
    file = tmp_path / "manifest.jsonl"
    content = json.loads(file.read_text())
    walk(file, content, json.dumps, lambda: manifest.finished([item]))
    assert manifest.finished([item]) == [True]
    file.write_text(json.dumps(changed(content, ("outputs", "a.nii.gz"), "0")))
    assert manifest.finished([item]) == [False]


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_plan_and_recipe(tmp_path: Path, every: int) -> None:
    plan = {
        "dataset": "x",
        "channels": [{"name": "CT", "normalisation": "fixed", "low": 0, "high": 1}],
        "labels": {1: "liver", 2: "tumour"},
        "slicing_axis": "axial",
    }
    walk(tmp_path / "plan.yaml", plan, yaml_text, lambda: read_plan_yaml(tmp_path / "plan.yaml"), every=every)
    recipe = {"preset": "paper", **RunConfig().model_dump(mode="json")}
    file = tmp_path / "a.yaml"
    walk(file, recipe, yaml_text, lambda: read_recipe(str(file), from_scratch=True), every=every)


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_config_of_a_run(scored: Path, every: int) -> None:
    content = yaml.safe_load((scored / "config.yaml").read_text())
    walk(scored / "config.yaml", content, yaml_text, lambda: read_record(scored).about, every=every)


@pytest.mark.parametrize("every", SOME_OR_ALL)
def test_evaluation(scored: Path, every: int) -> None:
    """As `compare` and `report` read it; of each twentieth, the page is made, too."""
    numbers = count()

    def report() -> None:
        contents = read_run(scored)
        if next(numbers) % 20 == 0:
            page_html(contents, ranked_by="dice")

    file = scored / "evaluation" / "summary.json"
    content = json.loads(file.read_text())
    content["metrics"] = {name: content["metrics"][name] for name in ("dice", "hd95_mm")}
    content["results"] = [
        {key: value for key, value in result.items() if key in ("kind", "class", "label", "missed", "dice", "hd95_mm")}
        for result in content["results"]
    ]
    summary_table(content)
    walk(file, content, json.dumps, report, every=every)
    lean = {key: value for key, value in content.items() if key in ("metrics", "empty_policy", "empty_masks")}

    def compare() -> None:
        markdown(compare_runs([scored, scored.parent / "other"], ["dice"]))

    walk(file, lean, json.dumps, compare, every=every)
    file.write_text(json.dumps(content))
    cases = scored / "evaluation" / "cases.json"
    details = json.loads(cases.read_text())
    for detail in details:
        detail["rows"] = [{key: row[key] for key in ("kind", "class", "dice", "hd95_mm")} for row in detail["rows"]]
    walk(cases, details, json.dumps, report, every=every)
