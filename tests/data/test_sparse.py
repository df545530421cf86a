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


def test_an_ignored_voxel_is_not_drawn(blobs: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    make_sparse(blobs, once, LabelledSlices(every=3))  # slices 1 and 4; on the others all is to be ignored
    make_sparse(once, tmp_path / "twice", LabelledSlices())
    for label in labels_of(tmp_path / "twice").values():
        assert set(np.flatnonzero((label.array != 4).any(axis=(0, 1)))) <= {1, 4}
    file = once / "labelsTr" / "blob_00.nii.gz"
    label = Volume.read(file)
    array = np.zeros_like(label.array)
    array[0, 0, 0] = 4
    label.with_array(array).write(file)
    make_sparse(once, tmp_path / "again", LabelledSlices())
    assert (labels_of(tmp_path / "again")["blob_00"].array == 4).all()


def test_files_that_a_file_names_come_along_and_so_do_scans_without_labels(blobs: Path, tmp_path: Path) -> None:
    """MetaImage with its voxels in a file of their own, absolute paths in dataset.json, and a folder of scans."""
    root = tmp_path / "meta"
    entries = []
    for case in read_dataset(blobs).cases[:2]:
        paths = {part: root / f"{part}sTr" / f"{case.name}.mhd" for part in ("image", "label")}
        for part, source in (("image", case.images[0]), ("label", case.label)):
            paths[part].parent.mkdir(parents=True, exist_ok=True)
            Volume.read(source).write(paths[part])
        entries.append({part: str(path) for part, path in paths.items()})
    (root / "unlabelled").mkdir()
    shutil.copy(blobs / "imagesTr" / "blob_07.nii.gz", root / "unlabelled" / "more.nii.gz")
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "bright", "3": "dark"}, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    make_sparse(root, tmp_path / "sparse", LabelledSlices(every=2))
    found = read_dataset(tmp_path / "sparse")
    assert [case.name for case in found.unlabelled] == ["more"]
    before = read_dataset(root)
    for case, old in zip(found.cases, before.cases, strict=True):
        image, label = read_case(case)
        assert np.array_equal(image.array, read_case(old)[0].array)
        assert (label.array[:, :, ::2] == 4).all()


def test_a_cropped_label_is_laid_onto_its_image_first(blobs: Path, tmp_path: Path) -> None:
    """3D Slicer leaves the empty border out; slices are those of the scan, and the border is no background."""
    root = tmp_path / "cropped"
    case = read_dataset(blobs).cases[0]
    for part, source in (("images", case.images[0]), ("labels", case.label)):
        (root / f"{part}Tr").mkdir(parents=True)
        volume = Volume.read(source)
        if part == "images":
            volume.write(root / "imagesTr" / "a.nii.gz")
            continue
        affine = volume.affine.copy()
        affine[:3, 3] = (volume.affine @ [1, 1, 1, 1])[:3]
        Volume(volume.array[1:-1, 1:-1, 1:-1], affine).write(root / "labelsTr" / "a.seg.nrrd")
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.seg.nrrd"}
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "bright", "3": "dark"}, "training": [entry]}
    (root / "dataset.json").write_text(json.dumps(content))
    make_sparse(root, tmp_path / "sparse", LabelledSlices(listed={"a": frozenset([3])}))
    (label,) = labels_of(tmp_path / "sparse").values()
    assert (np.delete(label.array, 3, axis=2) == 4).all()
    assert not (label.array[:, :, 3] == 4).any()


def test_what_a_failed_call_left_of_other_data_goes(blobs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(blobs, tmp_path / "other"))
    (other / "labelsTr" / "blob_11.nii.gz").write_bytes(b"damaged")
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(blobs / folder / "blob_00.nii.gz", other / folder / "stray.nii.gz")
    content = json.loads((other / "dataset.json").read_text())
    content["training"].append({"image": "./imagesTr/stray.nii.gz", "label": "./labelsTr/stray.nii.gz"})
    (other / "dataset.json").write_text(json.dumps(content))
    image = other / "imagesTr" / "blob_01.nii.gz"
    volume = Volume.read(image)
    volume.with_array(volume.array + 1).write(image)
    out = tmp_path / "sparse"
    assert "blob_11.nii.gz" in str(command(other, "-o", out, "--every", "2"))
    assert command(blobs, "-o", out, "--every", "2") is None
    assert not (out / "imagesTr" / "stray.nii.gz").exists()
    assert (out / "imagesTr" / "blob_01.nii.gz").samefile(blobs / "imagesTr" / "blob_01.nii.gz")


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
