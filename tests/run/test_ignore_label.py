"""A data set with an ignore label, from training to scores; and a system that refuses it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.baselines.systems import PatchSystem
from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml, write_plan_yaml
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.report.build import write_report
from sam2_3dmed.run.run_folder import read_record
from sam2_3dmed.run.systems import OURS, System
from sam2_3dmed.run.train import TrainRequest, test_run, train
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume

test_run.__test__ = False  # a function of the package, not a test


@pytest.fixture(scope="module")
def data(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blobs, of whose labels the first half along x is not annotated (value 5)."""
    root = Path(shutil.copytree(blobs, tmp_path_factory.mktemp("ignore") / "blobs"))
    for file in (root / "labelsTr").glob("*.nii.gz"):
        label = Volume.read(file)
        array = label.array.copy()
        array[: len(array) // 2] = 5
        label.with_array(array).write(file)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"]["5"] = "ignore"
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_the_fingerprint_and_the_plan_have_no_such_class(data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data)
    found = fingerprint(dataset)
    for case in found.cases:
        label = Volume.read(data / "labelsTr" / f"{case.name}.nii.gz").array
        image = Volume.read(data / "imagesTr" / f"{case.name}.nii.gz").array
        assert case.num_foreground == np.isin(label, [1, 3]).sum()
        assert set(case.classes) == {*np.unique(label).tolist()} - {0, 5}
        inside = np.sort(image[np.isin(label, [1, 3])])
        assert case.intensities[0] == pytest.approx(np.percentile(inside, [0.5, 50, 99.5]).tolist())
    plan = propose_plan(found)
    assert (plan.labels, plan.ignore_label) == ({1: "bright", 3: "dark"}, 5)
    write_plan_yaml(plan, tmp_path / "plan.yaml")
    assert read_plan_yaml(tmp_path / "plan.yaml") == plan
    (first, *_) = build_cache(dataset.subset(dataset.names[:1]), plan, tmp_path / "cache", workers=0)
    stored = Volume.read(data / "labelsTr" / f"{first.name}.nii.gz").array
    counts = [(stored == value).sum() for value in (0, 1, 3, 5)]
    np.testing.assert_array_equal(np.bincount(first.label.ravel(), minlength=4), counts)
    assert first.annotated_slices is not None
    np.testing.assert_array_equal(first.annotated_slices, np.arange(first.num_slices))
    (again,) = build_cache(dataset.subset(dataset.names[:1]), plan, tmp_path / "cache", workers=0)
    np.testing.assert_array_equal(again.annotated_slices, first.annotated_slices)


@pytest.mark.parametrize("system", [OURS, "unet"])
def test_a_run_is_trained_and_scored_without_the_ignored_voxels(
    data: Path, tmp_path: Path, quick: Callable[..., RunConfig], quick_patches: Callable[..., PatchConfig], system: str
) -> None:
    recipe = quick() if system == OURS else quick_patches(system)
    folder = train(TrainRequest(data, tmp_path / "run", recipe=recipe, weights="none", system=system))
    assert folder is not None
    assert read_record(folder).plan.ignore_label == 5
    evaluation = test_run(folder, data)
    for case in evaluation.cases:
        truth, mask = (np.asarray(nib.load(path).dataobj) for path in (case.truth, case.prediction))
        assert set(np.unique(mask)) <= {0, 1, 3}
        known = truth != 5
        for row, value in zip(case.rows, (1, 3), strict=False):
            true, predicted = (truth == value) & known, (mask == value) & known
            size = true.sum() + predicted.sum()
            assert row.scores["dice"] == pytest.approx(2 * (true & predicted).sum() / size if size else 1)
    assert write_report(folder, data).is_file()


class Stranger(PatchSystem):
    """A system that says nothing of labels."""

    require_labels = System.require_labels


def test_a_system_that_knows_nothing_of_it_refuses_it() -> None:
    stranger = Stranger("stranger", "A stranger's", "", {})
    with pytest.raises(ConfigError, match=r"^stranger cannot leave out voxels, and 2 is an ignore label"):
        stranger.require_labels(LabelScheme({1: "a"}, ignore=2), None)


def test_the_value_must_be_free(data: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "dataset: Mine\nchannels: [{name: CT, normalisation: fixed, low: -150, high: 150}]\n"
        "labels: {1: bright, 3: dark}\nignore_label: 3\n"
    )
    with pytest.raises(ConfigError, match="ignore_label: 3 is the value of a class"):
        read_plan_yaml(plan)
    plan.write_text(plan.read_text().replace("ignore_label: 3", "slab_slices: 3"))
    with pytest.raises(DataError, match=r"values that are not allowed: 5 \(allowed: 0, 1, 3\)"):
        build_cache(read_dataset(data), read_plan_yaml(plan), tmp_path / "cache", workers=0)
