import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sam2_3dmed.data.cache as cache_module
from sam2_3dmed.config import ChannelPlan, Plan
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import MedicalDataset, read_case, read_dataset
from sam2_3dmed.errors import DataError
from sam2_3dmed.volume.slices import volume_to_slices
from sam2_3dmed.volume.volume import Volume

# Array axes run along L, P and S (2 mm).
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (5, 4, 6)
PLAN = Plan(
    dataset="Tiny",
    channels=(ChannelPlan(name="CT", normalisation="fixed", low=0, high=100),),
    labels={1: "liver", 4: "tumour"},
    slicing_axis="axial",
    slab_slices=3,
)


@pytest.fixture
def dataset(write_msd) -> MedicalDataset:
    rng = np.random.default_rng(0)
    cases = {}
    for name in "abc":
        label = np.zeros(SHAPE, np.uint8)
        label[0, 1, 2:5] = 1
        label[4, 3, 4] = 4
        cases[name] = rng.integers(-50, 150, SHAPE).astype(np.int16), label
    cases["c"][1][cases["c"][1] == 4] = 0
    root = write_msd(cases, affine=AFFINE, labels={"0": "background", "1": "liver", "4": "tumour"})
    return read_dataset(root)


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def counting(case, allowed):
        names.append(case.name)
        return read_case(case, allowed)

    monkeypatch.setattr(cache_module, "read_case", counting)
    return names


def test_a_case_is_what_preprocessing_makes_of_it(dataset: MedicalDataset, tmp_path: Path) -> None:
    cache = build_cache(dataset, PLAN, tmp_path / "cache")
    assert [case.name for case in cache] == ["a", "b", "c"]
    image, label = read_case(dataset.cases[0])
    assert label is not None
    case = cache[0]
    assert isinstance(case.image, np.memmap)
    assert case.image.dtype == np.float16
    assert case.image.shape == (6, 1, 4, 5)
    assert case.num_slices == 6
    expected = np.clip(image.array / 100, 0, 1)[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_allclose(case.image[:, 0], expected, atol=5e-4)
    assert case.label.dtype == np.uint8
    np.testing.assert_array_equal(case.label == 1, volume_to_slices(label, "axial") == 1)
    np.testing.assert_array_equal(case.label == 2, volume_to_slices(label, "axial") == 4)
    assert case.label[4, 0, 0] == 2  # (4, 3, 4) of an LPS array is the first column and row


def test_slices_that_hold_a_class_are_listed(dataset: MedicalDataset, tmp_path: Path) -> None:
    cache = build_cache(dataset, PLAN, tmp_path / "cache")
    found = {case.name: {k: v.tolist() for k, v in case.class_slices.items()} for case in cache}
    assert found == {"a": {1: [2, 3, 4], 2: [4]}, "b": {1: [2, 3, 4], 2: [4]}, "c": {1: [2, 3, 4], 2: []}}
    sagittal = PLAN.model_copy(update={"slicing_axis": "sagittal"})
    case = build_cache(dataset, sagittal, tmp_path / "sagittal")[0]
    assert {k: v.tolist() for k, v in case.class_slices.items()} == {1: [4], 2: [0]}
    assert case.image.shape == (5, 1, 6, 4)


def test_two_channels_stay_two(tmp_path: Path, write) -> None:
    image = np.random.default_rng(0).random((*SHAPE, 2)).astype(np.float32)
    write(tmp_path / "images/a.nii.gz", image)
    write(tmp_path / "labels/a.nii.gz", np.ones(SHAPE, np.uint8))
    channels = (ChannelPlan(name="T1", normalisation="percentiles", low=0, high=100),) * 2
    plan = PLAN.model_copy(update={"channels": channels})
    dataset = read_dataset(tmp_path)
    case = build_cache(dataset, plan, tmp_path / "cache")[0]
    assert case.image.shape == (6, 2, 4, 5)
    assert np.asarray(case.image).min(axis=(0, 2, 3)).tolist() == [0, 0]
    assert np.asarray(case.image).max(axis=(0, 2, 3)).tolist() == [1, 1]
    with pytest.raises(DataError, match=r"images/a\.nii\.gz: .*2 channels"):
        build_cache(dataset, PLAN, tmp_path / "other")


def test_processes_make_the_same(dataset: MedicalDataset, tmp_path: Path) -> None:
    alone = build_cache(dataset, PLAN, tmp_path / "alone", workers=0)
    together = build_cache(dataset, PLAN, tmp_path / "together", workers=2)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)


class TestReuse:
    def test_what_is_current_is_kept(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = build_cache(dataset, PLAN, tmp_path / "cache")
        read = _count_reads(monkeypatch)
        seen: list[int] = []
        # Keys that the preprocessing does not depend on may change.
        plan = PLAN.model_copy(update={"slab_slices": 6, "dataset": "x", "labels": {1: "organ", 4: "lesion"}})
        again = build_cache(dataset, plan, tmp_path / "cache", progress=lambda done, _: seen.append(done))
        assert read == []
        assert seen == [1, 2, 3]
        np.testing.assert_array_equal(again[1].image, first[1].image)
        assert again[1].class_slices.keys() == first[1].class_slices.keys()

    @pytest.mark.parametrize(
        "change",
        [
            {"slicing_axis": "coronal"},
            {"labels": {1: "liver", 3: "vessel", 4: "tumour"}},
            {"channels": (ChannelPlan(name="CT", normalisation="fixed", low=0, high=99),)},
            {"channels": (ChannelPlan(name="CT", normalisation="percentiles", low=0, high=100),)},
        ],
    )
    def test_another_plan_makes_it_anew(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
    ) -> None:
        build_cache(dataset, PLAN, tmp_path / "cache")
        read = _count_reads(monkeypatch)
        plan = PLAN.model_copy(update=change)
        changed = build_cache(dataset, plan, tmp_path / "cache")
        assert read == ["a", "b", "c"]
        fresh = build_cache(dataset, plan, tmp_path / "fresh")
        np.testing.assert_array_equal(changed[0].image, fresh[0].image)
        np.testing.assert_array_equal(changed[0].label, fresh[0].label)

    def test_another_version_makes_it_anew(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build_cache(dataset, PLAN, tmp_path / "cache")
        monkeypatch.setattr(cache_module, "_VERSION", cache_module._VERSION + 1)
        read = _count_reads(monkeypatch)
        build_cache(dataset, PLAN, tmp_path / "cache")
        assert read == ["a", "b", "c"]

    @pytest.mark.parametrize("which", ["image", "label"])
    def test_a_changed_file_is_read_again(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        build_cache(dataset, PLAN, tmp_path / "cache")
        case = dataset.cases[1]
        file = case.images[0] if which == "image" else case.label
        assert file is not None
        os.utime(file, (1, 1))
        read = _count_reads(monkeypatch)
        build_cache(dataset, PLAN, tmp_path / "cache")
        assert read == ["b"]

    @pytest.mark.parametrize("ending", ["image.npy", "label.npy", "json"])
    @pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "a bit", "other bytes at the end"])
    def test_a_damaged_case_is_made_anew(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, damage: str
    ) -> None:
        first = np.array(build_cache(dataset, PLAN, tmp_path / "cache")[1].image)
        file = tmp_path / "cache" / f"b.{ending}"
        content = file.read_bytes()
        file.unlink()
        if damage != "missing":
            damaged = {"truncated": content[:-2], "empty": b"", "other bytes at the end": content[:-8] + b"\1" * 8}
            flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
            file.write_bytes(damaged.get(damage, flipped))
        read = _count_reads(monkeypatch)
        again = build_cache(dataset, PLAN, tmp_path / "cache")
        assert read == ["b"]
        np.testing.assert_array_equal(again[1].image, first)

    @pytest.mark.parametrize("part", ["image", "label"])
    def test_the_files_of_another_case_are_noticed(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        """All have the same length and form."""
        first = build_cache(dataset, PLAN, tmp_path / "cache")
        expected = {case.name: np.array(getattr(case, part)) for case in first}
        for name, other in (("a", "c"), ("c", "b")):
            np.save(tmp_path / "cache" / f"{name}.{part}.npy", expected[other])
        read = _count_reads(monkeypatch)
        again = build_cache(dataset, PLAN, tmp_path / "cache")
        assert set(read) == {name for name in "abc" if not _same(expected, name)}
        for case in again:
            np.testing.assert_array_equal(getattr(case, part), expected[case.name])

    def test_an_interrupted_build_never_leaves_a_case_half_new(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = np.array(build_cache(dataset, PLAN, tmp_path / "cache")[0].image)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        darker = PLAN.model_copy(update={"channels": (ChannelPlan(name="CT", normalisation="fixed", low=0, high=500),)})
        with monkeypatch.context() as patched:
            patched.setattr(cache_module, "write_array", _only_the_first(cache_module.write_array, interrupted))
            with pytest.raises(KeyboardInterrupt):
                build_cache(dataset, darker, tmp_path / "cache")
        read = _count_reads(monkeypatch)
        case = build_cache(dataset, PLAN, tmp_path / "cache")[0]
        assert read == ["a"]
        np.testing.assert_array_equal(case.image, first)


def _same(arrays: dict[str, np.ndarray], name: str) -> bool:
    other = {"a": "c", "c": "b", "b": "b"}[name]
    return np.array_equal(arrays[name], arrays[other])


def _only_the_first(function, afterwards):
    calls = []

    def write(*arguments: object) -> None:
        calls.append(arguments)
        (function if len(calls) == 1 else afterwards)(*arguments)

    return write


class TestErrors:
    def test_a_full_disk_is_one_line_and_leaves_no_part(
        self, dataset: MedicalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(file: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(DataError, match=r"cache: the cache cannot be written: no space left on the device$"):
            build_cache(dataset, PLAN, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_folder_that_is_a_file(self, dataset: MedicalDataset, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        with pytest.raises(DataError, match="cache: the cache cannot be written"):
            build_cache(dataset, PLAN, tmp_path / "cache")

    def test_broken_cases_are_listed_and_the_others_kept(self, dataset: MedicalDataset, tmp_path: Path) -> None:
        dataset.cases[0].images[0].write_bytes(b"")
        dataset.cases[2].images[0].unlink()
        with pytest.raises(DataError, match=r"(?s)2 of 3 cases.*a\.nii\.gz.*c\.nii\.gz"):
            build_cache(dataset, PLAN, tmp_path / "cache")
        assert (tmp_path / "cache" / "b.json").is_file()

    def test_a_label_the_plan_does_not_name(self, dataset: MedicalDataset, tmp_path: Path) -> None:
        plan = PLAN.model_copy(update={"labels": {1: "liver"}})
        with pytest.raises(DataError, match=r"labelsTr/a\.nii\.gz.*4"):
            build_cache(dataset, plan, tmp_path / "cache")

    def test_a_case_without_label(self, dataset: MedicalDataset, tmp_path: Path) -> None:
        bare = replace(dataset, cases=(replace(dataset.cases[0], label=None),))
        with pytest.raises(DataError, match=r"a\.nii\.gz: has no label"):
            build_cache(bare, PLAN, tmp_path / "cache")


def test_a_case_travels_light(dataset: MedicalDataset, tmp_path: Path) -> None:
    case = build_cache(dataset, PLAN, tmp_path / "cache")[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(case)).image, case.image)
    assert len(pickle.dumps(case)) < 1500


def test_more_than_255_classes_need_two_bytes(tmp_path: Path, write) -> None:
    label = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    write(tmp_path / "images/a.nii.gz", np.zeros(label.shape, np.int16))
    write(tmp_path / "labels/a.nii.gz", label)
    plan = PLAN.model_copy(update={"labels": {i: f"class {i}" for i in range(1, 300)}})
    case = build_cache(read_dataset(tmp_path), plan, tmp_path / "cache")[0]
    np.testing.assert_array_equal(case.label, label.transpose(2, 1, 0))


def test_real_ct(shared_data: Path, tmp_path: Path) -> None:
    found = read_dataset(shared_data / "Task91_SarcomaCT")
    channel = ChannelPlan(name="CT", normalisation="fixed", low=-90, high=96)
    plan = PLAN.model_copy(update={"labels": found.labels, "channels": (channel,)})
    (case,) = build_cache(replace(found, cases=found.cases[:1]), plan, tmp_path)
    assert case.image.shape == (48, 1, 143, 161)
    assert case.label.shape == (48, 143, 161)
    inside = np.asarray(case.image[:, 0])[case.label == 1]
    assert 0.4 < np.median(inside) < 0.9
    held = [d for d in range(48) if case.label[d].any()]
    assert case.class_slices[1].tolist() == held


def test_new_voxels_behind_an_old_header_are_prepared_again(tmp_path: Path, write) -> None:
    label = np.zeros((6, 5, 4), np.uint8)
    label[:2] = 1
    write(tmp_path / "images/a.nii.gz", np.zeros(label.shape, np.int16))
    (tmp_path / "labels").mkdir()
    Volume(label, np.eye(4)).write(tmp_path / "labels/a.mhd")
    plan = PLAN.model_copy(update={"labels": {1: "organ"}})
    assert build_cache(read_dataset(tmp_path), plan, tmp_path / "cache")[0].label.sum() == 40
    header = (tmp_path / "labels/a.mhd").read_bytes(), (tmp_path / "labels/a.mhd").stat()
    label[:4] = 1
    Volume(label, np.eye(4)).write(tmp_path / "labels/a.mhd")
    (tmp_path / "labels/a.mhd").write_bytes(header[0])
    os.utime(tmp_path / "labels/a.mhd", ns=(header[1].st_atime_ns, header[1].st_mtime_ns))
    assert build_cache(read_dataset(tmp_path), plan, tmp_path / "cache")[0].label.sum() == 80
