"""A data set of which only some slices are labelled: the others get the ignore label, and all else stays."""

import json
import shutil
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan
from sam2_3dmed.data.sparse import LabelledSlices, make_sparse, read_labelled_slices
from sam2_3dmed.errors import ConfigError, DataError, UserError
from sam2_3dmed.volume.volume import Volume


def labels_of(root: Path) -> dict[str, Volume]:
    return {case.name: read_case(case)[1] for case in read_dataset(root).cases}


def test_every_third_slice_keeps_its_label(blobs: Path, tmp_path: Path) -> None:
    assert make_sparse(blobs, tmp_path / "sparse", LabelledSlices(every=3)) == list(read_dataset(blobs).names)
    before, after = labels_of(blobs), labels_of(tmp_path / "sparse")
    for name, label in after.items():
        assert np.array_equal(label.array[:, :, 1::3], before[name].array[:, :, 1::3])
        assert (np.delete(label.array, np.s_[1::3], axis=2) == 4).all()  # the next value
        assert np.array_equal(label.affine, before[name].affine)
    found = read_dataset(tmp_path / "sparse")
    assert (dict(found.labels), found.labels.ignore) == ({1: "bright", 3: "dark"}, 4)
    image = tmp_path / "sparse" / "imagesTr" / "blob_00.nii.gz"
    assert image.samefile(blobs / "imagesTr" / "blob_00.nii.gz")  # linked
    described = json.loads((tmp_path / "sparse" / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", "1": "bright", "3": "dark", "4": "ignore"}


def test_slices_of_another_axis_are_counted_as_in_the_file(blobs: Path, tmp_path: Path) -> None:
    """The file's first axis runs to the left, which is against the sagittal slices' own order."""
    (tmp_path / "labelled.csv").write_text("case,slice\nblob_03,2\nblob_03,5\nblob_04,0\n")
    chosen = read_labelled_slices(tmp_path / "labelled.csv", "sagittal")
    make_sparse(blobs, tmp_path / "sparse", chosen)
    before, after = labels_of(blobs), labels_of(tmp_path / "sparse")
    for name, kept in (("blob_03", [2, 5]), ("blob_04", [0]), ("blob_05", range(24))):
        known = (after[name].array != 4).all(axis=(1, 2))
        assert np.flatnonzero(known).tolist() == list(kept)
        assert np.array_equal(after[name].array[kept], before[name].array[kept])
        assert (np.delete(after[name].array, kept, axis=0) == 4).all()


def test_where_something_is_drawn(blobs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(blobs, tmp_path / "drawn"))
    file = root / "labelsTr" / "blob_02.nii.gz"
    label = Volume.read(file)
    array = label.array.copy()
    array[:, :, [0, 2, 5]] = 0
    label.with_array(array).write(file)
    make_sparse(root, tmp_path / "sparse", LabelledSlices())
    known = (labels_of(tmp_path / "sparse")["blob_02"].array != 4).all(axis=(0, 1))
    assert np.flatnonzero(known).tolist() == np.flatnonzero(array.any(axis=(0, 1))).tolist()
    assert not known[[0, 2, 5]].any()
    assert known.any()


def test_an_ignore_label_that_is_there_is_used(blobs: Path, tmp_path: Path) -> None:
    """In nnU-Net's layout, with a region."""
    root = tmp_path / "nnunet"
    for case in read_dataset(blobs).cases[:3]:
        for folder, file, name in (
            ("imagesTr", case.images[0], f"{case.name}_0000"),
            ("labelsTr", case.label, case.name),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / folder / f"{name}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "regions_class_order": [1, 3]}
    content["labels"] = {"background": 0, "whole": [1, 3], "dark": 3, "ignore": 7}
    (root / "dataset.json").write_text(json.dumps(content))
    make_sparse(root, tmp_path / "sparse", LabelledSlices(every=2))
    assert json.loads((tmp_path / "sparse" / "dataset.json").read_text()) == content
    for label in labels_of(tmp_path / "sparse").values():
        assert (label.array[:, :, ::2] == 7).all()
        assert not (label.array[:, :, 1::2] == 7).any()


def test_plan_and_samples_know_of_it(blobs: Path, tmp_path: Path) -> None:
    """A class spans the slices from its first to its last; slabs lie where labels are."""
    make_sparse(blobs, tmp_path / "sparse", LabelledSlices(every=3))
    sparse = fingerprint(read_dataset(tmp_path / "sparse"))
    assert {case.classes[1].num_slices[2] for case in sparse.cases if 1 in case.classes} == {4}  # 1 to 4; drawn: 2
    plan = propose_plan(sparse)
    (case, *_) = build_cache(read_dataset(tmp_path / "sparse"), plan, tmp_path / "cache", workers=0)
    assert case.annotated_slices.tolist() == [1, 4]
    assert set(case.class_slices[1]) <= {1, 4}


def command(*arguments: object) -> UserError | None:
    result = CliRunner().invoke(app, ["sparse", *map(str, arguments)])
    assert result.exit_code == 0 or isinstance(result.exception, UserError), result.output
    return result.exception


def test_mistakes_are_told(blobs: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "labelled.csv", tmp_path / "sparse"
    for content, words in (
        ("case,slice\nblob_99,1\n", "has no case 'blob_99'"),
        ("case,slice\nblob_01,one\n", "line 2 must have a case and the number of a slice"),
        ("case,slice\nblob_01,-1\n", "line 2 must have a case and the number of a slice"),
        ("name,slice\nblob_01,1\n", "no case"),
        ("case,slice\nblob_01,7\n", "slice 7 is listed, and it has the axial slices 0 to 6"),
    ):
        table.write_text(content)
        error = command(blobs, "-o", out, "--slices", table)
        assert isinstance(error, DataError)
        assert words in str(error)
        assert not (out / "dataset.json").exists()
    for arguments in ([], ["--every", "2", "--drawn"]):
        assert isinstance(command(blobs, "-o", out, *arguments), ConfigError)
    assert command(blobs, "-o", out, "--every", "2") is None  # what the failed call left is gone on with
    assert "is not an empty folder" in str(command(blobs, "-o", out, "--every", "2"))
    pair = tmp_path / "pair"
    for folder in ("images", "labels"):
        shutil.copytree(blobs / f"{folder}Tr", pair / folder)
    assert "needs a dataset.json" in str(command(pair, "-o", tmp_path / "other", "--every", "2"))
