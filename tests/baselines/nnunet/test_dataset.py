"""What is written for nnU-Net: channels, class indices, its description, the split."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed.baselines.nnunet.dataset import to_values, write_channels, write_dataset, write_split
from sam2_3dmed.config import ChannelPlan
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.volume import Volume, same_grid


def test_labels_become_indices_and_values_again():
    label = np.array([[0, 3], [7, 3]], dtype=np.uint16)
    scheme = LabelScheme({3: "a", 7: "b"})
    indices = scheme.to_indices(label)
    np.testing.assert_array_equal(indices, [[0, 1], [2, 1]])
    np.testing.assert_array_equal(to_values(indices, scheme), label)
    assert to_values(indices, scheme).dtype == np.uint8
    assert to_values(indices, LabelScheme({3: "a", 700: "b"})).dtype == np.uint16


def test_regions_and_an_ignore_label(balls, tmp_path):
    """In a label file 1 is a core, 3 the rest of the whole, and 9 was not annotated."""
    case = balls.catalog.cases[0]
    label = Volume.read(case.label)
    array = label.array.copy()
    array[0] = 9
    label.with_array(array).write(tmp_path / "label.nii.gz")
    dataset = replace(balls.catalog, cases=(replace(case, label=tmp_path / "label.nii.gz"),))
    labels = {3: "whole", 1: "core"}
    plan = balls.plan.model_copy(update={"labels": labels, "regions": {3: (1, 3), 1: (1,)}, "ignore_label": 9})
    write_dataset(dataset, plan, tmp_path)
    root = tmp_path / "Dataset001_run"
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "class 1": [1, 2], "class 2": [1], "ignore": 3}
    assert content["regions_class_order"] == [2, 1]
    expected = np.select([array == 1, array == 3, array == 9], [1, 2, 3])
    np.testing.assert_array_equal(Volume.read(root / "labelsTr" / f"{case.name}.nii.gz").array, expected)


def test_cases_are_written_as_they_lie(balls, tmp_path):
    write_dataset(balls.catalog, balls.plan, tmp_path)
    root = tmp_path / "Dataset001_run"
    assert json.loads((root / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "class 1": 1, "class 2": 2},
        "numTraining": 12,
        "file_ending": ".nii.gz",
    }
    case = balls.catalog.cases[0]
    image, label = Volume.read(case.images[0]), Volume.read(case.label)
    written = Volume.read(root / "imagesTr" / f"{case.name}_0000.nii.gz")
    assert same_grid(written, image)
    np.testing.assert_array_equal(written.array, image.array)
    classes = Volume.read(root / "labelsTr" / f"{case.name}.nii.gz")
    assert same_grid(classes, label)
    np.testing.assert_array_equal(classes.array, np.where(label.array == 3, 2, label.array))


def test_what_is_no_ct_is_not_called_one(balls, tmp_path):
    channel = ChannelPlan(name="CT", normalisation="percentiles", low=1, high=99)
    write_dataset(balls.catalog, balls.plan.model_copy(update={"channels": (channel,)}), tmp_path)
    content = json.loads((tmp_path / "Dataset001_run" / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "channel 0"}


def test_a_file_for_each_channel(tmp_path):
    volume = Volume(np.arange(48.0).reshape(2, 3, 4, 2), np.eye(4))
    paths = write_channels(volume, tmp_path, "a")
    assert [path.name for path in paths] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    for number, path in enumerate(paths):
        np.testing.assert_array_equal(Volume.read(path).array, volume.array[..., number])


def test_no_place_to_write(tmp_path):
    with pytest.raises(VolumeError, match="no folder"):
        write_channels(Volume(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "no folder", "a")


def test_the_split_is_the_only_fold(tmp_path):
    (tmp_path / "Dataset001_run").mkdir()
    write_split(Split(train=("a", "b"), validation=("c",), test=("d",)), tmp_path)
    content = json.loads((tmp_path / "Dataset001_run" / "splits_final.json").read_text())
    assert content == [{"train": ["a", "b"], "val": ["c"]}]
