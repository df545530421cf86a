import json
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.data.dataset import Case, read_case, read_dataset, read_unlabelled
from sam2_3dmed.errors import DataError, VolumeError

SHAPE = (4, 5, 3)


def _touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def _msd(root: Path, **changes: object) -> Path:
    """An MSD data set of empty files a and b, with keys of its description replaced."""
    _touch(*(root / f"{kind}Tr" / f"{name}.nii.gz" for kind in ("images", "labels") for name in "ab"))
    content = {
        "name": "Tiny",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [_entry("b"), _entry("a")],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def _entry(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def _nnunet(root: Path, **changes: object) -> Path:
    _touch(*(root / "imagesTr" / f"{name}_{i:04d}.nii.gz" for name in ("a", "b_0003") for i in range(2)))
    _touch(*(root / "labelsTr" / f"{name}.nii.gz" for name in ("a", "b_0003")))
    content = {
        "channel_names": {"1": "PET", "0": "CT"},
        "labels": {"background": 0, "tumour": 2, "liver": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def _error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestMsd:
    def test_reads_cases_labels_and_channels(self, tmp_path: Path) -> None:
        dataset = read_dataset(_msd(tmp_path))
        assert dataset.name == "Tiny"
        assert dataset.names == ("a", "b")
        assert dataset.channels == ("CT",)
        assert dataset.labels == {1: "liver", 2: "tumour"}
        assert dataset.cases[0].images == (tmp_path / "imagesTr/a.nii.gz",)
        assert dataset.cases[0].label == tmp_path / "labelsTr/a.nii.gz"

    @pytest.mark.parametrize(
        "labels",
        [
            {"0": "background", "2": "tumour", "1": "liver"},
            {"background": 0, "tumour": 2, "liver": 1},
            {"background": "0", "liver": "1", "tumour": 2.0},
        ],
    )
    def test_label_variants_mean_the_same(self, tmp_path: Path, labels: dict[str, object]) -> None:
        found = read_dataset(_msd(tmp_path, labels=labels)).labels
        assert list(found.items()) == [(1, "liver"), (2, "tumour")]

    def test_unlabelled_images_are_listed_and_left_out(self, tmp_path: Path) -> None:
        training = [_entry("a"), {"image": "./imagesTr/b.nii.gz"}]
        dataset = read_dataset(_msd(tmp_path, training=training))
        assert dataset.names == ("a",)
        assert [case.name for case in dataset.unlabelled] == ["b"]

    def test_mac_copies_are_ignored(self, tmp_path: Path) -> None:
        assert read_dataset(_msd(tmp_path, training=[_entry("a"), _entry("._a")])).names == ("a",)

    def test_a_list_of_images_is_one_per_channel(self, tmp_path: Path) -> None:
        _touch(tmp_path / "imagesTr/c_0000.nii.gz", tmp_path / "imagesTr/c_0001.nii.gz")
        images = ["imagesTr/c_0000.nii.gz", "imagesTr/c_0001.nii.gz"]
        training = [{"image": images, "label": "labelsTr/a.nii.gz"}]
        dataset = read_dataset(_msd(tmp_path, training=training, modality={"0": "T1", "1": "T2"}))
        assert dataset.names == ("c",)
        assert len(dataset.cases[0].images) == 2

    def test_nnunet_1_names_its_files_without_the_channel(self, tmp_path: Path) -> None:
        _msd(tmp_path, modality={"0": "T1", "1": "T2"}, training=[_entry("c")])
        files = (tmp_path / "imagesTr/c_0000.nii.gz", tmp_path / "imagesTr/c_0001.nii.gz")
        _touch(*files, tmp_path / "labelsTr/c.nii.gz")
        (case,) = read_dataset(tmp_path).cases
        assert (case.name, case.images) == ("c", files)

    def test_links_may_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        root = _msd(tmp_path / "data")
        (root / "imagesTr/a.nii.gz").rename(tmp_path / "elsewhere.nii.gz")
        (root / "imagesTr/a.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
        assert read_dataset(root).names == ("a", "b")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"training": []}, "no labelled case"),
            ({"training": [{"image": "imagesTr/a.nii.gz"}]}, "no labelled case"),
            ({"training": {"a": "b"}}, '"training" must be a list'),
            ({"training": [{"label": "labelsTr/a.nii.gz"}]}, 'entry 0 of "training"'),
            ({"training": [_entry("a"), _entry("missing")]}, "imagesTr/missing.nii.gz: no such file"),
            ({"training": [_entry("a"), _entry("a")]}, "2 cases have the name 'a'"),
            ({"training": [_entry("../../a")]}, "leaves the data set's folder"),
            ({"training": [{**_entry("a"), "label": "/etc/passwd"}]}, "leaves the data set's folder"),
            ({"labels": {}}, '"labels" must name the classes'),
            ({"labels": {"0": "background"}}, "no class besides the background"),
            ({"labels": {"1": "liver", "2": "liver"}}, "same name to two values"),
            ({"labels": {"1": "liver", "01": "spleen"}}, "the value 1 twice"),
            ({"labels": {"liver": "one"}}, "'liver' with 'one'"),
            ({"labels": {"liver": 1.5}}, "'liver' with 1.5"),
            ({"labels": {"liver": -1}}, "values lie in 0 to 65535"),
            ({"labels": {"whole": [1, 2]}}, "region-based"),
            ({"modality": {}}, '"modality" must name the channels'),
            ({"modality": {"0": "T1", "2": "T2"}}, '"modality" must name the channels'),
            ({"modality": {str(i): f"T{i}" for i in range(4)}}, "4 channels, but at most 3"),
        ],
    )
    def test_a_broken_description_gets_one_line(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        error = _error(_msd(tmp_path, **changes))
        assert message in error
        assert str(tmp_path) in error

    @pytest.mark.parametrize("path", ["imagesTr/a.nii.gz", "./imagesTr/a.nii.gz", "labelsTr/../imagesTr/a.nii.gz"])
    def test_a_path_inside_is_below_the_root(self, tmp_path: Path, path: str) -> None:
        (case,) = read_dataset(_msd(tmp_path, training=[{**_entry("a"), "image": path}])).cases
        assert case.images == (tmp_path / "imagesTr/a.nii.gz",)

    def test_an_absolute_path_into_the_folder_is_below_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "data")
        image = str(tmp_path / "data" / "imagesTr" / "a.nii.gz")
        _msd(tmp_path / "data", training=[{**_entry("a"), "image": image}])
        for root in (tmp_path / "data", tmp_path / "link"):
            (case,) = read_dataset(root).cases
            assert case.images == (root / "imagesTr/a.nii.gz",)

    def test_a_path_of_300_letters_gets_one_line(self, tmp_path: Path) -> None:
        line = _error(_msd(tmp_path, training=[{**_entry("a"), "image": "a" * 300}]))
        assert line == f"{tmp_path}: cannot be read: File name too long"

    @pytest.mark.parametrize("path", ["..", "../a", "a/../../b", "/a", "a\0b"])
    def test_a_path_that_leaves_is_an_error(self, tmp_path: Path, path: str) -> None:
        line = _error(_msd(tmp_path, training=[{**_entry("a"), "image": path}]))
        assert line.startswith(f"{tmp_path / 'dataset.json'}: the path {path!r} leaves")

    def test_a_name_may_look_like_a_number(self, tmp_path: Path) -> None:
        assert read_dataset(_msd(tmp_path, labels={"0": "background", "1": "7"})).labels == {1: "7"}
        assert read_dataset(_msd(tmp_path, labels={"background": 0, "7": 1})).labels == {1: "7"}

    @pytest.mark.parametrize("labels", [None, [], "liver", {"liver": True}, {"liver": None}, {"liver": 65536}])
    def test_labels_of_another_form_are_an_error(self, tmp_path: Path, labels: object) -> None:
        assert _error(_msd(tmp_path, labels=labels)).startswith(f"{tmp_path / 'dataset.json'}: ")

    @pytest.mark.parametrize("modality", [{"1": "T2", "0": "T1"}, ["T1", "T2"]])
    def test_channels_come_in_the_order_of_their_numbers(self, tmp_path: Path, modality: object) -> None:
        assert read_dataset(_msd(tmp_path, modality=modality)).channels == ("T1", "T2")

    def test_an_entry_may_be_an_image_alone(self, tmp_path: Path) -> None:
        dataset = read_dataset(_msd(tmp_path, training=["imagesTr/b.nii.gz", _entry("a")]))
        assert (dataset.names, [case.name for case in dataset.unlabelled]) == (("a",), ["b"])


class TestNnunet:
    def test_channels_are_files_in_order(self, tmp_path: Path) -> None:
        dataset = read_dataset(_nnunet(tmp_path))
        assert dataset.channels == ("CT", "PET")
        assert dataset.labels == {1: "liver", 2: "tumour"}
        assert dataset.names == ("a", "b_0003")
        images = tuple(tmp_path / "imagesTr" / f"b_0003_000{i}.nii.gz" for i in range(2))
        assert dataset.cases[1].images == images

    def test_images_without_label_are_listed(self, tmp_path: Path) -> None:
        _touch(_nnunet(tmp_path) / "imagesTr/c_0000.nii.gz", tmp_path / "imagesTr/._a_0000.nii.gz")
        assert read_dataset(tmp_path).unlabelled == (Case("c", (tmp_path / "imagesTr/c_0000.nii.gz",), None),)

    def test_the_optional_list_of_files_is_obeyed(self, tmp_path: Path) -> None:
        files = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]
        dataset = read_dataset(_nnunet(tmp_path, dataset={"x": {"images": files, "label": "labelsTr/a.nii.gz"}}))
        assert dataset.names == ("x",)
        assert dataset.cases[0].images == tuple(tmp_path / file for file in files)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "region-based"),
            ({"labels": {"background": 0, "liver": 1, "ignore": [2, 3]}}, '"ignore" one value that no class has'),
            ({"channel_names": {"0": "CT", "1": "PET", "2": "T1"}}, "a_0002.nii.gz: no such file"),
            ({"channel_names": {"0": "CT"}}, '"channel_names" names 1 channels, but '),
            ({"file_ending": ".tif"}, "'.tif'"),
            ({"dataset": {"x/y": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}}, "cannot be a case name"),
            (
                {"dataset": {"x": {"images": ["../a.nii.gz"], "label": "b.nii.gz"}}},
                "leaves the data set's folder",
            ),
            ({"dataset": {"x": {"images": "a.nii.gz"}}}, '"dataset" must hold'),
        ],
    )
    def test_what_cannot_be_used_gets_one_line(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        assert message in _error(_nnunet(tmp_path, **changes))

    def test_a_label_without_image_is_an_error(self, tmp_path: Path) -> None:
        (_nnunet(tmp_path) / "imagesTr/a_0001.nii.gz").unlink()
        assert "a_0001.nii.gz: no such file" in _error(tmp_path)


class TestFolders:
    @pytest.mark.parametrize("pair", [("images", "labels"), ("imagesTr", "labelsTr")])
    def test_equal_names_make_a_case(self, tmp_path: Path, pair: tuple[str, str]) -> None:
        images, labels = (tmp_path / folder for folder in pair)
        _touch(
            images / "b.nii.gz",
            images / "a.nii",
            images / "c.nii.gz",
            images / "._a.nii",
            images / "notes.txt",
        )
        _touch(labels / "a.nii.gz", labels / "b.nii.gz", labels / "._b.nii.gz")
        dataset = read_dataset(tmp_path)
        assert dataset.names == ("a", "b")
        assert dataset.cases[0].images == (images / "a.nii",)
        assert dataset.unlabelled == (Case("c", (images / "c.nii.gz",), None),)
        assert (dataset.channels, dataset.labels) == ((), {})
        assert dataset.name == tmp_path.name

    def test_channel_files_are_found(self, tmp_path: Path) -> None:
        files = tuple(tmp_path / f"images/a_000{i}.nii.gz" for i in range(3))
        _touch(*files, tmp_path / "labels/a.nii.gz")
        dataset = read_dataset(tmp_path)
        assert dataset.cases[0].images == files
        assert dataset.unlabelled == ()

    def test_a_label_without_image_is_an_error(self, tmp_path: Path) -> None:
        _touch(*(tmp_path / f"images/a_000{i}.nii.gz" for i in range(2)))
        _touch(tmp_path / "labels/a.nii.gz", tmp_path / "labels/b.nii.gz")
        assert "images/b.nii.gz: no such file" in _error(tmp_path)

    def test_cases_need_equally_many_channels(self, tmp_path: Path) -> None:
        _touch(*(tmp_path / f"images/{name}.nii.gz" for name in ("a_0000", "a_0001", "b_0000")))
        _touch(tmp_path / "labels/a.nii.gz", tmp_path / "labels/b.nii.gz")
        assert "b has 1 and a has 2" in _error(tmp_path)

    def test_two_files_of_one_name_are_an_error(self, tmp_path: Path) -> None:
        _touch(tmp_path / "images/a.nii", tmp_path / "images/a.nii.gz", tmp_path / "labels/a.nii.gz")
        assert "a.nii and a.nii.gz" in _error(tmp_path)

    def test_an_empty_pair_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        assert "no labelled case" in _error(tmp_path)


def test_other_folders_get_one_line(tmp_path: Path) -> None:
    assert "no such folder" in _error(tmp_path / "missing")
    assert "no dataset.json, nor the folders" in _error(tmp_path)
    file = tmp_path / "dataset.json"
    file.write_text('{"training": [')
    assert f"{file}: broken JSON" in _error(tmp_path)
    file.write_text("[]")
    assert "an object is expected" in _error(tmp_path)
    file.write_text("{}")
    assert 'neither "training" (MSD) nor "channel_names"' in _error(tmp_path)
    file.write_bytes(b"\xff")
    assert "cannot be read" in _error(tmp_path)


class TestReadCase:
    def test_channel_files_are_stacked_last(self, tmp_path: Path, write) -> None:
        arrays = [np.full(SHAPE, value, np.int16) for value in (3, 7)]
        for i, array in enumerate(arrays):
            write(tmp_path / f"images/a_000{i}.nii.gz", array)
        label = np.zeros(SHAPE, np.uint8)
        label[1, 2, 0] = 2
        write(tmp_path / "labels/a.nii.gz", label)
        image, read = read_case(read_dataset(tmp_path).cases[0], (1, 2))
        np.testing.assert_array_equal(image.array, np.stack(arrays, axis=-1))
        assert read is not None
        np.testing.assert_array_equal(read.array, label)

    def test_another_value_is_an_error(self, write_msd) -> None:
        root = write_msd({"a": (np.zeros(SHAPE, np.int16), np.full(SHAPE, 3, np.uint8))})
        (case,) = read_dataset(root).cases
        with pytest.raises(VolumeError, match=r"labelsTr/a\.nii\.gz.*3"):
            read_case(case, (1, 2))

    def test_different_grids_are_an_error_that_names_both_files(self, tmp_path: Path, write) -> None:
        write(tmp_path / "images/a.nii.gz", np.zeros(SHAPE, np.int16))
        write(tmp_path / "labels/a.nii.gz", np.zeros((4, 5, 2), np.uint8))
        (case,) = read_dataset(tmp_path).cases
        with pytest.raises(VolumeError, match=r"labels/a\.nii\.gz: not on the grid of .*images/a\.nii\.gz: shapes"):
            read_case(case)
        write(tmp_path / "labels/a.nii.gz", np.zeros(SHAPE, np.uint8), np.diag([1, 1, 2, 1]))
        with pytest.raises(VolumeError, match="spacing"):
            read_case(case)

    def test_channels_on_different_grids_are_an_error(self, tmp_path: Path, write) -> None:
        write(tmp_path / "images/a_0000.nii.gz", np.zeros(SHAPE, np.int16))
        write(tmp_path / "images/a_0001.nii.gz", np.zeros(SHAPE, np.int16), np.diag([-1, 1, 1, 1]))
        write(tmp_path / "labels/a.nii.gz", np.zeros(SHAPE, np.uint8))
        with pytest.raises(VolumeError, match=r"a_0001\.nii\.gz: not on the grid of .*a_0000\.nii\.gz"):
            read_case(read_dataset(tmp_path).cases[0])


def test_real_decathlon_data(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "Task04_Hippocampus")
    assert len(dataset.cases) == 200
    assert dataset.labels == {1: "Anterior", 2: "Posterior"}
    assert dataset.channels == ("MRI",)
    image, label = read_case(dataset.cases[0], dataset.labels)
    assert label is not None
    assert image.shape == label.shape
    assert set(np.unique(label.array)) == {0, 1, 2}


def test_scans_without_labels_may_have_a_folder_of_their_own(tmp_path: Path) -> None:
    """As many numbered files as channels are one scan; all others are scans of their own, and none is lost."""
    _nnunet(tmp_path)
    folder = tmp_path / "unlabelled"
    files = [folder / f"{name}.nii.gz" for name in ("x_0000", "x_0001", "y", "z_0000", "z_0001", "z_0002")]
    _touch(*files)
    x, y, *z = Case("x", tuple(files[:2]), None), *(Case(file.name[:-7], (file,), None) for file in files[2:])
    assert read_dataset(tmp_path).unlabelled == (x, y, *z)
    assert read_unlabelled(folder, 3) == [
        *(Case(file.name[:-7], (file,), None) for file in files[:3]),
        Case("z", tuple(files[3:]), None),
    ]


def test_scans_of_the_image_folder_that_are_not_listed_have_no_label(tmp_path: Path) -> None:
    root = _msd(tmp_path, training=[_entry("a")])
    _touch(root / "imagesTr" / "left.nii.gz")
    assert Case("left", (root / "imagesTr" / "left.nii.gz",), None) in read_dataset(root).unlabelled
