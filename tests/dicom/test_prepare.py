"""Studies in, a data set out that the catalogue reads, with the labels that were drawn."""

import json
import shutil
import zipfile
from copy import deepcopy

import numpy as np
import pytest
from pydicom import dcmread

from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.dicom.prepare import find_studies, parse_labels, prepare
from sam2_3dmed.dicom.segmentation import write_segmentation
from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.dicom.structures import write_structures
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume


@pytest.fixture
def studies(tmp_path, made_studies):
    """Two studies: one with a SEG of two classes, one with an RTSTRUCT of one of them and of another."""
    return shutil.copytree(made_studies, tmp_path / "studies")


@pytest.fixture(scope="module")
def made_studies(tmp_path_factory, write_series, stored_voxels):
    root = tmp_path_factory.mktemp("made")
    for number, (write, name, labels) in enumerate(
        [
            (lambda *a: write_segmentation(*a, {}), "seg.dcm", {1: "spleen", 2: "tumour"}),
            (write_structures, "rs.dcm", {1: "body", 2: "tumour"}),
        ]
    ):
        folder = root / f"patient{number}"
        write_series(folder / "ct", stored_voxels(), SeriesInstanceUID=f"1.2.3.{number + 1}0", StudyInstanceUID="1.2.9")
        series = choose_series(folder / "ct")
        array = np.zeros(series.shape, np.uint8)
        array[1:6, 1:6, :] = 1
        array[2:4, 2 : 4 + number, 1:3] = 2
        write(Volume(array, series.affine), series, folder / name, labels)
    return root


def label_of(folder, name):
    return read_label(folder / "labelsTr" / f"{name}.nii.gz").array


def test_a_data_set_that_the_catalogue_reads(studies, tmp_path, stored_voxels):
    cases, failures = prepare(studies, tmp_path / "set")
    assert failures == {}
    assert cases == ["patient0", "patient1"]
    assert failures == {}
    dataset = read_dataset(tmp_path / "set")
    assert dataset.labels == {1: "body", 2: "spleen", 3: "tumour"}
    assert dataset.channels == ("CT",)
    image, label = read_case(dataset.cases[0], dataset.labels)
    assert np.array_equal(image.array, stored_voxels() - 1024)
    assert image.orientation == "LPS"
    assert sorted(np.unique(label.array, return_counts=True)[1].tolist()) == sorted([315 - 125, 125 - 8, 8])


def test_named_labels_and_one_value_of_two_names(studies, tmp_path):
    prepare(studies, tmp_path / "set", [("spleen", 5), ("body", 5)])
    assert read_dataset(tmp_path / "set").labels == {5: "spleen"}
    for name, count in (("patient0", 125 - 8), ("patient1", 125 - 12)):
        assert np.count_nonzero(label_of(tmp_path / "set", name) == 5) == count


def test_codes_of_the_annotations_are_kept(studies, tmp_path):
    prepare(studies, tmp_path / "set")
    codes = json.loads((tmp_path / "set" / "dataset.json").read_text())["codes"]
    assert codes["spleen"] == ["78961009", "SCT", "Spleen"]


@pytest.mark.parametrize("order", [("inner", "outer"), ("outer", "inner")])
def test_where_two_overlap_the_later_one_wins(tmp_path, write_series, stored_voxels, order, caplog):
    folder = tmp_path / "s"
    write_series(folder / "ct", stored_voxels())
    series = choose_series(folder / "ct")
    for name, width in (("inner", 2), ("outer", 4)):
        array = np.zeros(series.shape, np.uint8)
        array[1 : 1 + width, 1:5, 2] = 1
        write_structures(Volume(array, series.affine), series, folder / f"{name}.dcm", {1: name})
    prepare(folder, tmp_path / "set", [(order[0], 1), (order[1], 2)])
    counts = np.bincount(label_of(tmp_path / "set", "s").ravel(), minlength=3)[1:].tolist()
    assert counts == ([0, 16] if order[1] == "outer" else [8, 8])
    assert "classes overlap in 8 voxels" in caplog.text


def _square(folder, series, name, first, last, **changes):
    """An RTSTRUCT with a square of pixels on slice 2; changes: elements of other values, None takes one away."""
    array = np.zeros(series.shape, np.uint8)
    array[first:last, first:last, 2] = 1
    write_structures(Volume(array, series.affine), series, folder, {1: name})
    dataset = dcmread(folder)
    for keyword, value in changes.items():
        delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
    dataset.save_as(folder)
    return dataset


@pytest.fixture
def one(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "s" / "ct", stored_voxels())
    return choose_series(tmp_path / "s" / "ct")


@pytest.mark.parametrize(("dates", "voxels"), [(("20240101", "20230101"), 4), (("20230101", "20240101"), 9)])
def test_two_readers_are_not_mixed(tmp_path, one, dates, voxels, caplog):
    """Readers drew 4 and 9 pixels, of which 1 is the same."""
    for date, (name, first, last) in zip(dates, [("a", 1, 3), ("b", 2, 5)], strict=True):
        _square(tmp_path / "s" / f"{name}.dcm", one, "GTV", first, last, StructureSetDate=date)
    prepare(tmp_path / "s", tmp_path / "set")
    assert label_of(tmp_path / "set", "s").sum() == voxels
    assert "s: 'GTV' is drawn in " in caplog.text


def test_the_same_annotation_twice_is_one(tmp_path, one, caplog):
    _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3)
    shutil.copy(tmp_path / "s" / "a.dcm", tmp_path / "s" / "b.dcm")
    prepare(tmp_path / "s", tmp_path / "set")
    assert label_of(tmp_path / "set", "s").sum() == 4
    assert "is drawn in" not in caplog.text


@pytest.mark.parametrize("by", ["images", "frame of reference"])
def test_an_annotation_without_references(tmp_path, one, write_series, stored_voxels, by):
    write_series(tmp_path / "s" / "x", stored_voxels(), SeriesInstanceUID="1.2.7", FrameOfReferenceUID="1.7")
    dataset = _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3)
    del dataset.ReferencedFrameOfReferenceSequence
    if by == "images":
        del dataset.FrameOfReferenceUID, dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    else:
        del dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence
    dataset.save_as(tmp_path / "s" / "a.dcm")
    (study,), _ = find_studies(tmp_path / "s")
    assert study.image[0][1].SeriesInstanceUID == one.uid
    prepare(tmp_path / "s", tmp_path / "set")
    assert label_of(tmp_path / "set", "s").sum() == 4


def test_regions_of_two_frames_of_reference(tmp_path, one, write_series, stored_voxels):
    """Each region is drawn into the series of its frame alone."""
    write_series(tmp_path / "s" / "x", stored_voxels(), SeriesInstanceUID="1.2.7", FrameOfReferenceUID="1.7")
    other = choose_series(tmp_path / "s" / "x")
    first = _square(tmp_path / "s" / "a.dcm", one, "A", 1, 3)
    second = _square(tmp_path / "s" / "b.dcm", other, "B", 2, 5)
    (tmp_path / "s" / "b.dcm").unlink()
    second.StructureSetROISequence[0].ROINumber = second.ROIContourSequence[0].ReferencedROINumber = 2
    for sequence in ("ReferencedFrameOfReferenceSequence", "StructureSetROISequence", "ROIContourSequence"):
        setattr(first, sequence, [*first[sequence].value, *second[sequence].value])
    first.save_as(tmp_path / "s" / "a.dcm")
    cases, _ = prepare(tmp_path / "s", tmp_path / "set")
    found = [np.unique(label_of(tmp_path / "set", name), return_counts=True) for name in cases]
    assert [(values.tolist(), counts.tolist()[1:]) for values, counts in found] == [([0, 1], [4]), ([0, 2], [9])]


def test_points_and_empty_regions_are_no_classes(tmp_path, one):
    dataset = _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3)
    for number, contours in ((2, []), (3, [deepcopy(dataset.ROIContourSequence[0].ContourSequence[0])])):
        for sequence, keyword in (
            ("StructureSetROISequence", "ROINumber"),
            ("ROIContourSequence", "ReferencedROINumber"),
        ):
            item = deepcopy(dataset[sequence].value[0])
            setattr(item, keyword, number)
            dataset[sequence].value.append(item)
        dataset.StructureSetROISequence[-1].ROIName = f"other {number}"
        dataset.ROIContourSequence[-1].ContourSequence = contours
    point = dataset.ROIContourSequence[-1].ContourSequence[0]
    point.ContourGeometricType, point.NumberOfContourPoints, point.ContourData = "POINT", 1, [0, 0, 0]
    dataset.save_as(tmp_path / "s" / "a.dcm")
    prepare(tmp_path / "s", tmp_path / "set")
    assert read_dataset(tmp_path / "set").labels == {1: "GTV"}


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("broken", "file"), [("patient0", "seg.dcm"), ("patient1", "rs.dcm")])
def test_a_damaged_annotation_costs_only_its_case(studies, tmp_path, broken, file, kept, caplog):
    path = studies / broken / file
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    (case,), failures = prepare(studies, tmp_path / "set")
    assert case != broken
    assert str(path) in failures.get(broken, caplog.text)


def test_an_annotation_of_images_that_are_not_here(studies, tmp_path, caplog):
    shutil.rmtree(studies / "patient0" / "ct")
    assert prepare(studies, tmp_path / "set")[0] == ["patient1"]
    assert f"1 annotations without images here left out; the first: {studies}/patient0/seg.dcm refers to" in caplog.text


def test_a_zip(studies, tmp_path):
    path = shutil.make_archive(str(tmp_path / "all"), "zip", studies)
    assert zipfile.is_zipfile(path)
    assert [study.name for study in find_studies(tmp_path / "all.zip")[0]] == ["patient0", "patient1"]
    assert prepare(tmp_path / "all.zip", tmp_path / "set")[0] == ["patient0", "patient1"]


def test_a_broken_study_costs_only_itself(studies, tmp_path):
    sorted((studies / "patient0" / "ct").iterdir())[1].unlink()
    cases, failures = prepare(studies, tmp_path / "set")
    assert cases == ["patient1"]
    assert "1 missing slices" in failures["patient0"]
    assert read_dataset(tmp_path / "set").names == ("patient1",)


def test_a_case_without_the_wanted_label(studies, tmp_path):
    cases, failures = prepare(studies, tmp_path / "set", [("spleen", 1)])
    assert cases == ["patient0"]
    assert "none of the labels spleen in this case" in failures["patient1"]


def test_unknown_label(studies, tmp_path):
    with pytest.raises(DataError, match="no annotation is called liver; there are: body, spleen, tumour"):
        prepare(studies, tmp_path / "set", [("liver", 1)])


def test_mixed_modalities(studies, tmp_path):
    for file in (studies / "patient1" / "ct").iterdir():
        dataset = dcmread(file)
        dataset.Modality = "MR"
        dataset.save_as(file)
    with pytest.raises(DataError, match="there are 1 CT, 1 MR; prepare them one by one"):
        prepare(studies, tmp_path / "set")


def test_nothing_annotated(studies, tmp_path):
    with pytest.raises(DataError, match="no DICOM-SEG or RTSTRUCT here that refers to an image series here"):
        prepare(studies / "patient0" / "ct", tmp_path / "set")


def test_a_folder_with_something_in_it(studies, tmp_path):
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        prepare(studies, studies)


@pytest.mark.parametrize(("text", "label"), [("liver=1", ("liver", 1)), ("a=b=12", ("a=b", 12))])
def test_labels_of_the_command_line(text, label):
    assert parse_labels([text]) == [label]


@pytest.mark.parametrize("text", ["liver", "=1", "liver=0", "liver=x", "liver=70000"])
def test_labels_of_another_form(text):
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        parse_labels([text])


@pytest.mark.parametrize("case", ["CT", "MR_T1"])
def test_a_real_study_gives_the_supplied_mask(shared_data, tmp_path, case):
    source = shared_data / "dicom" / "sarcoma_019" / case
    (name,), _ = prepare(source, tmp_path / "set")
    image, label = read_case(read_dataset(tmp_path / "set").cases[0])
    assert name == case
    assert np.array_equal(image.array, Volume.read(source / "image.nii.gz").array)
    assert np.array_equal(label.array > 0, read_label(source / "label.nii.gz").array > 0)


def test_no_two_cases_share_a_name(tmp_path, write_series, stored_voxels):
    """Folders `a/b` and `a_b` would both be `a_b`, and `A_b` is the same file where capitals do not count."""
    for number, folder in enumerate(["a/b", "a_b", "A_b", "a_b_2"]):
        write_series(tmp_path / "s" / folder / "ct", stored_voxels(), SeriesInstanceUID=f"1.2.3.{number + 1}0")
        series = choose_series(tmp_path / "s" / folder / "ct")
        _square(tmp_path / "s" / folder / "rs.dcm", series, "GTV", 1, 2 + number)
    cases, _ = prepare(tmp_path / "s", tmp_path / "set")
    assert cases == ["A_b", "a_b_3", "a_b_4", "a_b_2"]
    assert [int(label_of(tmp_path / "set", case).sum()) for case in cases] == [9, 1, 4, 16]


@pytest.fixture
def killed(studies, tmp_path, monkeypatch):
    """A folder whose maker was killed in its second case, and the folder of a call that was not."""
    straight = tmp_path / "straight"
    prepare(studies, straight)
    made = []
    write = Volume.write

    def die_in_the_second_case(volume, path):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(path)
        write(volume, path)

    with monkeypatch.context() as patch:
        patch.setattr(Volume, "write", die_in_the_second_case)
        with pytest.raises(KeyboardInterrupt):
            prepare(studies, tmp_path / "set")
    return tmp_path / "set", straight


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_call_leaves_no_data_set_and_is_completed(killed, studies, monkeypatch):
    folder, straight = killed
    with pytest.raises(DataError, match="is not whole"):
        read_dataset(folder)
    written = []
    write = Volume.write
    monkeypatch.setattr(Volume, "write", lambda volume, path: (written.append(path.name), write(volume, path)))
    prepare(studies, folder)
    assert written == ["patient1.nii.gz"] * 2
    assert contents(folder) == contents(straight)


def test_a_begun_case_of_other_labels_or_images_is_made_again(killed, studies, tmp_path):
    folder, _ = killed
    image = min((studies / "patient0" / "ct").iterdir())
    dataset = dcmread(image)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(image)
    prepare(studies, folder, [("spleen", 7), ("body", 8)])
    prepare(studies, tmp_path / "other", [("spleen", 7), ("body", 8)])
    assert contents(folder) == contents(tmp_path / "other")


def test_a_begun_case_that_is_gone_or_damaged(killed, studies, tmp_path):
    folder, _ = killed
    shutil.rmtree(studies / "patient0")
    prepare(studies, folder)
    prepare(studies, tmp_path / "other")
    assert contents(folder) == contents(tmp_path / "other")


def test_a_failed_call_leaves_nothing_behind(tmp_path, one):
    _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3)
    (tmp_path / "set").mkdir()
    file = next(iter((tmp_path / "s" / "ct").iterdir()))
    dataset = dcmread(file)
    dataset.RescaleSlope = "1e400"
    dataset.save_as(file)
    with pytest.raises(DataError, match="no case could be made"):
        prepare(tmp_path / "s", tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []


def test_an_edited_annotation_that_keeps_its_uid_is_no_copy(tmp_path, one, caplog):
    dataset = _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3, StructureSetDate="20240101")
    _square(
        tmp_path / "s" / "b.dcm", one, "GTV", 2, 5, StructureSetDate="20240202", SOPInstanceUID=dataset.SOPInstanceUID
    )
    prepare(tmp_path / "s", tmp_path / "set")
    assert label_of(tmp_path / "set", "s").sum() == 9
    assert "the newer one, the latter, is taken" in caplog.text


@pytest.mark.parametrize("name", ["Ignore", "background"])
def test_a_region_whose_name_means_something_else_in_a_data_set_stays_a_class(tmp_path, one, name):
    _square(tmp_path / "s" / "a.dcm", one, name, 1, 3)
    prepare(tmp_path / "s", tmp_path / "set")
    labels = read_dataset(tmp_path / "set").labels
    assert (dict(labels), labels.ignore) == ({1: f"{name} (drawn)"}, None)


def test_a_journal_of_somebody_else_removes_nothing_outside(tmp_path, one):
    _square(tmp_path / "s" / "a.dcm", one, "GTV", 1, 3)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "set" / "folder").mkdir(parents=True)
    line = {
        "name": "x",
        "made_of": "y",
        "outputs": dict.fromkeys(["../mine.txt", str(tmp_path / "mine.txt"), "folder"], "0"),
    }
    (tmp_path / "set" / ".unfinished.jsonl").write_text(json.dumps(line) + "\n")
    assert prepare(tmp_path / "s", tmp_path / "set") == (["s"], {})
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_regions_of_one_name_in_one_file_are_one_with_a_line(tmp_path, one, caplog):
    array = np.zeros(one.shape, np.uint8)
    array[1:3, 1:3, 2], array[4:7, 4:6, 2] = 1, 2
    write_structures(Volume(array, one.affine), one, tmp_path / "s" / "a.dcm", {1: "GTV", 2: "other"})
    dataset = dcmread(tmp_path / "s" / "a.dcm")
    for item in dataset.StructureSetROISequence:
        item.ROIName = "GTV"
    dataset.save_as(tmp_path / "s" / "a.dcm")
    prepare(tmp_path / "s", tmp_path / "set")
    assert label_of(tmp_path / "set", "s").sum() == 4 + 6
    assert "draws 'GTV' 2 times; all are taken as one" in caplog.text
