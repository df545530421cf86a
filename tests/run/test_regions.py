"""A data set with region-based labels: what is prepared, trained, predicted, exported and scored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.config import InferenceConfig, RunConfig
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml, write_plan_yaml
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.logits_to_mask import slice_mask
from sam2_3dmed.inference.postprocess import postprocess
from sam2_3dmed.report.build import write_report
from sam2_3dmed.run.predict import PredictRequest, predict
from sam2_3dmed.run.run_folder import read_record
from sam2_3dmed.run.train import TrainRequest, test_run, train
from sam2_3dmed.training.losses import class_masks
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume

test_run.__test__ = False  # a function of the package, not a test

BRATS = LabelScheme({2: "whole", 1: "core", 3: "enhancing"}, regions={2: (1, 2, 3), 1: (1, 3), 3: (3,)})


@pytest.fixture(scope="module")
def data(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blobs with both balls as one region, painted as 3, and the bright one in it, and an ignored plane (7)."""
    root = Path(shutil.copytree(blobs, tmp_path_factory.mktemp("regions") / "blobs"))
    for file in (root / "labelsTr").glob("*.nii.gz"):
        label = Volume.read(file)
        array = label.array.copy()
        array[0] = 7
        label.with_array(array).write(file)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"background": 0, "both": [1, 3], "bright": 1, "ignore": 7}
    content["regions_class_order"] = [3, 1]
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_later_regions_are_painted_over_earlier_ones() -> None:
    """As nnU-Net's `convert_probabilities_to_segmentation`, which was run on the same numbers (nnunetv2 2.8.1)."""
    logits = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, -1.0, -1.0]])
    mask = slice_mask(logits.view(3, 1, 5), 1, 5, BRATS)
    assert mask.flatten().tolist() == [2, 1, 3, 1, 0]


def test_masks_of_regions_overlap() -> None:
    labels = torch.arange(5).view(1, 1, 1, 5)
    indexed = BRATS.indexed
    masks = class_masks(labels, 3, [indexed.members(value) for value in indexed])
    assert masks[0, :, 0, 0].tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]


def test_the_indices_of_other_values() -> None:
    scheme = LabelScheme({40: "whole", 9: "core"}, regions={40: (9, 17, 40), 9: (9,)}, ignore=60)
    assert scheme.file_values == (9, 17, 40)
    np.testing.assert_array_equal(scheme.to_indices(np.array([0, 9, 17, 40, 60])), [0, 1, 2, 3, 4])
    indexed = scheme.indexed
    assert (dict(indexed), indexed.regions, indexed.ignore) == ({3: "whole", 1: "core"}, {3: (1, 2, 3), 1: (1,)}, 4)
    np.testing.assert_array_equal(scheme.numbers(np.array([0, 9, 17, 40, 60])), [0, 2, 1, 1, 0])


def test_names_of_what_a_mask_shows() -> None:
    assert BRATS.parts == {2: "whole without core", 1: "core without enhancing", 3: "enhancing"}
    assert LabelScheme({1: "a", 2: "b"}).parts == {1: "a", 2: "b"}


def test_post_processing_takes_a_region_as_a_whole() -> None:
    """A row: a whole of 4 voxels with a core of 2 in it, and a whole of 3 with a core of 1."""
    row = np.array([0, 2, 1, 1, 2, 0, 0, 2, 1, 2, 0], np.uint8)
    scheme = LabelScheme({2: "whole", 1: "core"}, regions={2: (1, 2), 1: (1,)})

    def processed(**options: object) -> list[int]:
        mask = Volume(row.reshape(-1, 1, 1).copy(), np.eye(4))
        postprocess(mask, scheme, InferenceConfig(**options))
        return mask.array.ravel().tolist()

    assert processed(largest_component=("whole",)) == [0, 2, 1, 1, 2, 0, 0, 0, 0, 0, 0]
    assert processed(largest_component=("core",)) == [0, 2, 1, 1, 2, 0, 0, 2, 2, 2, 0]
    assert processed(largest_component=True) == [0, 2, 1, 1, 2, 0, 0, 0, 0, 0, 0]
    assert processed(min_volume_ml={"core": 0.002}) == [0, 2, 1, 1, 2, 0, 0, 2, 2, 2, 0]


def test_a_hole_is_filled_with_the_value_of_the_region() -> None:
    array = np.ones((5, 5, 5), np.uint8)
    array[1:4, 1:4, 1:4] = 2
    array[2, 2, 2] = 0
    scheme = LabelScheme({2: "whole", 1: "core"}, regions={2: (1, 2), 1: (1,)})
    mask = Volume(array, np.eye(4))
    postprocess(mask, scheme, InferenceConfig(fill_holes=("whole",)))
    assert mask.array[2, 2, 2] == 2


def test_the_plan_and_the_prepared_labels(data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data)
    found = fingerprint(dataset)
    first = found.cases[0]
    stored = Volume.read(data / "labelsTr" / f"{first.name}.nii.gz")
    voxel_ml = float(np.prod(stored.spacing_mm)) / 1000
    assert first.classes[3].volume_ml == pytest.approx(np.isin(stored.array, [1, 3]).sum() * voxel_ml)
    assert first.classes[1].volume_ml == pytest.approx((stored.array == 1).sum() * voxel_ml)
    plan = propose_plan(found)
    assert (plan.labels, plan.regions, plan.ignore_label) == ({3: "both", 1: "bright"}, {3: (1, 3), 1: (1,)}, 7)
    write_plan_yaml(plan, tmp_path / "plan.yaml")
    assert read_plan_yaml(tmp_path / "plan.yaml") == plan
    (case,) = build_cache(dataset.subset([first.name]), plan, tmp_path / "cache", workers=0)
    counts = [(stored.array == value).sum() for value in (0, 1, 3, 7)]
    np.testing.assert_array_equal(np.bincount(case.label.ravel(), minlength=4), counts)
    held = [np.isin(case.label, members).any(axis=(1, 2)) for members in ([1, 2], [1])]
    for k, expected in enumerate(held, start=1):
        np.testing.assert_array_equal(case.class_slices[k], np.flatnonzero(expected))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory, quick: Callable[..., RunConfig]) -> Path:
    folder = train(TrainRequest(data, tmp_path_factory.mktemp("run") / "run", recipe=quick(), weights="none"))
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def unet_run(data: Path, tmp_path_factory: pytest.TempPathFactory, quick_patches: Callable[..., PatchConfig]) -> Path:
    out, recipe = tmp_path_factory.mktemp("unet") / "run", quick_patches("unet")
    folder = train(TrainRequest(data, out, recipe=recipe, weights="none", system="unet"))
    assert folder is not None
    return folder


@pytest.mark.parametrize("system", ["run", "unet_run"])
def test_a_run_is_trained_scored_and_reported(data: Path, system: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(system)
    plan = read_record(run).plan
    assert (dict(plan.labels), plan.regions, plan.ignore_label) == ({3: "both", 1: "bright"}, {3: (1, 3), 1: (1,)}, 7)
    assert {"validation/dice_both", "validation/dice_bright"} < {
        *(run / "curves.csv").read_text().split("\n")[0].split(",")
    }
    for case in test_run(run, data).cases:
        truth, mask = (np.asarray(nib.load(path).dataobj) for path in (case.truth, case.prediction))
        assert set(np.unique(mask)) <= {0, 1, 3}
        for row, members in zip(case.rows, ([1, 3], [1]), strict=False):
            true, predicted = (np.isin(array, members) & (truth != 7) for array in (truth, mask))
            size = true.sum() + predicted.sum()
            assert row.scores["dice"] == pytest.approx(2 * (true & predicted).sum() / size if size else 1)
    assert write_report(run, data).is_file()


@pytest.mark.parametrize("system", ["run", "unet_run"])
def test_probabilities_are_of_regions_and_segments_of_parts(
    data: Path, system: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image = next((data / "imagesTr").glob("*.nii.gz"))
    wanted = PredictRequest(request.getfixturevalue(system), [image], out=tmp_path, format="nrrd", probabilities=True)
    assert [outcome.error for outcome in predict(wanted)] == [None]
    names = {path.name.split("_")[-1] for path in (tmp_path / "probabilities").iterdir()}
    assert names == {"both.nii.gz", "bright.nii.gz"}
    header = next(tmp_path.glob("*.seg.nrrd")).read_bytes().split(b"\n\n")[0].decode()
    assert "Segment0_Name:=both without bright" in header
    assert "Segment1_Name:=bright" in header


def test_boxes_are_refused_before_cases_are_read(data: Path, tmp_path: Path, quick: Callable[..., RunConfig]) -> None:
    boxes = quick("model.box_every=2")
    with pytest.raises(ConfigError, match="draws boxes around single values"):
        train(TrainRequest(data, tmp_path / "run", recipe=boxes, weights="none"))
    assert {path.name for path in tmp_path.glob("**/*")} == {"run", "log.txt"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("labels: {2: whole, 1: core}", "must be ascending"),
        ("labels: {2: whole, 1: core}\nregions: {2: [1, 2]}", "needs the values of each class, 2, 1"),
        ("labels: {1: core, 2: whole}\nregions: {2: [1, 2], 1: [1]}", "core is painted before whole, which covers it"),
        ("labels: {2: whole, 1: core}\nregions: {2: [2, 3], 1: [3]}", "the value of a class must belong to a region"),
        ("labels: {2: whole, 1: core}\nregions: {2: [0, 1, 2], 1: [1]}", "values lie in 1 to 65535"),
        ("labels: {2: whole, 1: core}\nregions: {2: [], 1: [1]}", "regions"),
        (
            "labels: {2: whole, 1: core}\nregions: {2: [1, 2, 3], 1: [1]}\nignore_label: 3",
            "ignore_label: 3 is the value",
        ),
    ],
)
def test_a_plan_that_cannot_be_used(tmp_path: Path, keys: str, message: str) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"dataset: Mine\nchannels: [{{name: CT, normalisation: fixed, low: -1, high: 1}}]\n{keys}\n")
    with pytest.raises(ConfigError, match=message):
        read_plan_yaml(plan)
