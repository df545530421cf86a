from pathlib import Path

import pytest

from sam2_3dmed.data.dataset_json import channel_names, foreground, inside, training_entries
from sam2_3dmed.errors import DataError

FILE = Path("data/dataset.json")


@pytest.mark.parametrize("path", ["imagesTr/a.nii.gz", "./imagesTr/a.nii.gz", "labelsTr/../imagesTr/a.nii.gz"])
def test_a_path_inside_is_below_the_root(path: str) -> None:
    assert inside(Path("data"), FILE, path) == Path("data/imagesTr/a.nii.gz")


@pytest.mark.parametrize("path", ["..", "../a", "a/../../b", "/a", "a\0b"])
def test_a_path_that_leaves_is_an_error(path: str) -> None:
    with pytest.raises(DataError, match=r"^data/dataset\.json: the path .* leaves"):
        inside(Path("data"), FILE, path)


def test_a_name_may_look_like_a_number() -> None:
    assert foreground(FILE, {"0": "background", "1": "7", "2": "liver"}) == {1: "7", 2: "liver"}
    assert foreground(FILE, {"background": 0, "7": 1}) == {1: "7"}


@pytest.mark.parametrize("labels", [None, [], "liver", {"liver": True}, {"liver": None}, {"liver": 65536}])
def test_labels_of_another_form_are_an_error(labels: object) -> None:
    with pytest.raises(DataError, match=r"^data/dataset\.json: "):
        foreground(FILE, labels)


def test_channels_come_in_the_order_of_their_numbers() -> None:
    assert channel_names(FILE, {"1": "T2", "0": "T1"}, "modality") == ("T1", "T2")
    assert channel_names(FILE, ["T1", "T2"], "modality") == ("T1", "T2")


def test_an_entry_may_be_an_image_alone() -> None:
    assert list(training_entries(FILE, ["a.nii.gz", {"image": "b.nii.gz", "label": "c.nii.gz"}])) == [
        (["a.nii.gz"], None),
        (["b.nii.gz"], "c.nii.gz"),
    ]
