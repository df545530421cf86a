import json
from pathlib import Path

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import match_files, read_class_names, read_pairs


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_same_names_and_a_channel_suffix_match(tmp_path):
    predictions = touch(tmp_path / "p", "b.nii.gz", "a_0000.nii", "._b.nii.gz", "plans.json")
    labels = touch(tmp_path / "l", "a.nii.gz", "b.nii.gz")
    assert match_files(predictions, labels) == [
        ("a", predictions / "a_0000.nii", labels / "a.nii.gz"),
        ("b", predictions / "b.nii.gz", labels / "b.nii.gz"),
    ]


def test_two_files_need_no_common_name(tmp_path):
    prediction, label = (
        touch(tmp_path, "mine.nii.gz") / "mine.nii.gz",
        touch(tmp_path, "theirs.nii") / "theirs.nii",
    )
    assert match_files(prediction, label) == [("mine", prediction, label)]


def test_all_that_is_unmatched_is_listed(tmp_path):
    predictions = touch(tmp_path / "p", "a.nii.gz", "x.nii.gz")
    labels = touch(tmp_path / "l", "a.nii.gz", *(f"y{number:02}.nii.gz" for number in range(12)))
    with pytest.raises(DataError) as caught:
        match_files(predictions, labels)
    message = str(caught.value)
    assert f"without a label in {labels}: x;" in message
    assert f"without a prediction in {predictions}: y00, y01" in message
    assert message.endswith("y09 and 2 more")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "no .nii, .nii.gz, .nrrd, .mha or .mhd files"), (["a.nii", "a.nii.gz"], "more than one file for a")],
)
def test_unusable_folders(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        match_files(touch(tmp_path / "p", *names), touch(tmp_path / "l", "a.nii"))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="gone: no such folder"):
        match_files(tmp_path / "gone", tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "2": "tumour", "1": "organ"},
        {"background": 0, "tumour": 2, "organ": 1},
    ],
)
def test_class_names_of_both_layouts(tmp_path, labels):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    assert list(read_class_names(path).items()) == [(1, "organ"), (2, "tumour")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class names: broken JSON"),
        ("[]", "no class names: an object is expected, not a list"),
        ("{}", "no class names"),
        ('{"labels": ["a"]}', "no class names"),
        ('{"labels": {"whole": [1, 2]}}', 'no class names: region-based labels need "regions_class_order"'),
        ('{"labels": {"background": 0}}', 'no class names: "labels" names no class besides the background'),
    ],
)
def test_unusable_class_names(tmp_path, text, message):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"dataset\.json: {message}"):
        read_class_names(path)


def test_missing_class_names(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json"):
        read_class_names(tmp_path / "gone.json")


def test_pairs_of_a_table(tmp_path):
    (tmp_path / "pairs.csv").write_text("label, prediction\nl/a.nii, p/x_0000.nii.gz\n/elsewhere/b.nii, y.nii\n")
    assert read_pairs(tmp_path / "pairs.csv") == [
        ("x", tmp_path / "p" / "x_0000.nii.gz", tmp_path / "l" / "a.nii"),
        ("y", tmp_path / "y.nii", Path("/elsewhere/b.nii")),
    ]


def test_pairs_may_name_their_cases(tmp_path):
    (tmp_path / "pairs.csv").write_text("\ufeffcase,prediction,label\none,m.nii,a.nii\ntwo,m.nii,b.nii\n")
    assert [name for name, _, _ in read_pairs(tmp_path / "pairs.csv")] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must name the columns prediction and label; no prediction, label"),
        (b"prediction,truth\na,b\n", "no label"),
        (b"prediction,label\n", "lists no pairs"),
        (b"prediction,label\na.nii,b.nii\nc.nii\n", "line 3 does not have both"),
        (b"prediction,label\na.nii,b.nii\na.nii.gz,c.nii\n", "more than one file for a"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"\x1f\x8b\x08\x00", "cannot be read"),
    ],
)
def test_unusable_tables(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"pairs\.csv: .*({message})"):
        read_pairs(tmp_path / "pairs.csv")


def test_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file"):
        read_pairs(tmp_path / "gone.csv")
