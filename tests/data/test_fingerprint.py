from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import describe, fingerprint, foreground_percentiles
from sam2_3dmed.errors import DataError

# Array axes run along S (2 mm), L (0.5 mm) and P (1 mm).
AFFINE = np.array([[0, -0.5, 0, 10], [0, 0, -1, 20], [2, 0, 0, 30], [0, 0, 0, 1]], dtype=float)


def _case(shape: tuple[int, int, int] = (6, 8, 10), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and a block of class 1 (2 x 3 x 4 voxels) above one voxel of class 2."""
    image = np.random.default_rng(seed).integers(-500, 1500, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[1:3, 2:5, 3:7] = 1
    label[5, 0, 0] = 2
    return image, label


def test_a_case_is_measured_along_r_a_and_s(write_msd) -> None:
    image, label = _case()
    found = fingerprint(read_dataset(write_msd({"a": (image, label)}, affine=AFFINE)))
    (case,) = found.cases
    assert (case.name, case.orientation, case.num_channels) == ("a", "SLP", 1)
    assert case.shape == (8, 10, 6)
    assert case.spacing_mm == pytest.approx((0.5, 1, 2))
    assert case.classes[1].volume_ml == pytest.approx(24 / 1000)
    assert case.classes[1].num_slices == (3, 4, 2)
    assert case.classes[2].num_slices == (1, 1, 1)
    assert case.num_foreground == 25
    np.testing.assert_array_equal(case.foreground_sample, np.sort(image[label > 0])[None])
    assert case.intensities[0] == pytest.approx(np.percentile(image[label > 0], [0.5, 50, 99.5]).tolist())


def test_slices_are_counted_not_spanned(write_msd) -> None:
    image, label = _case()
    label[...] = 0
    label[0, 3, 3] = label[5, 3, 3] = 1
    found = fingerprint(read_dataset(write_msd({"a": (image, label)}, affine=AFFINE)))
    assert found.cases[0].classes[1].num_slices == (1, 1, 2)


def test_classes_that_a_case_lacks_are_not_among_its_own(write_msd) -> None:
    image, label = _case()
    found = fingerprint(
        read_dataset(write_msd({"a": (image, label), "b": (image, label == 1), "c": (image, label * 0)}))
    )
    assert [sorted(case.classes) for case in found.cases] == [[1, 2], [1], []]
    assert found.cases[2].num_foreground == 0
    assert found.cases[2].intensities == ()


def test_a_plain_pair_of_folders_gets_its_labels_and_channels_from_the_files(tmp_path: Path, write) -> None:
    image, label = _case()
    write(tmp_path / "images/a.nii.gz", np.stack([image, image], axis=-1))
    write(tmp_path / "labels/a.nii.gz", label * 3)
    write(tmp_path / "images/b.nii.gz", np.stack([image, image], axis=-1))
    write(tmp_path / "labels/b.nii.gz", (label == 1) * np.uint8(4))
    found = fingerprint(read_dataset(tmp_path))
    assert found.labels == {3: "class 3", 4: "class 4", 6: "class 6"}
    assert found.channels == ("channel 0", "channel 1")
    assert found.cases[0].foreground_sample.shape == (2, 25)


def test_images_with_other_channels_are_an_error(tmp_path: Path, write) -> None:
    image, label = _case()
    for name in "abc":
        write(tmp_path / f"labels/{name}.nii.gz", label)
        write(tmp_path / f"images/{name}.nii.gz", image if name != "b" else np.stack([image, image], axis=-1))
    with pytest.raises(DataError, match="b has 2 channels, most cases have 1"):
        fingerprint(read_dataset(tmp_path))


def test_all_broken_cases_are_listed_at_once(write_msd) -> None:
    image, label = _case()
    root = write_msd(dict.fromkeys("abcd", (image, label)) | {"e": (image, label + 7)})
    (root / "imagesTr/b.nii.gz").write_bytes(b"nonsense")
    (root / "labelsTr/d.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        fingerprint(read_dataset(root))
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 5 cases cannot be used:"
    assert [
        ("imagesTr/b.nii.gz" in line, "labelsTr/d.nii.gz" in line, "labelsTr/e.nii.gz" in line) for line in lines
    ] == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_channels_must_be_those_the_description_names(write_msd) -> None:
    image, label = _case()
    root = write_msd({"a": (np.stack([image, image], axis=-1), label)})
    with pytest.raises(DataError, match=r"imagesTr/a\.nii\.gz: 2 channels, but the data set names 1"):
        fingerprint(read_dataset(root))


def test_no_foreground_anywhere_is_an_error(write_msd) -> None:
    image, label = _case()
    with pytest.raises(DataError, match="Tiny: no label holds any foreground"):
        fingerprint(read_dataset(write_msd({"a": (image, label * 0)})))


def test_progress_counts_to_all_cases(write_msd) -> None:
    seen: list[tuple[int, int]] = []
    root = write_msd({name: _case() for name in "abc"})
    fingerprint(read_dataset(root), workers=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


class TestForegroundPercentiles:
    def test_small_cases_are_pooled_voxel_by_voxel(self, write_msd) -> None:
        cases = {"a": _case(seed=1), "b": _case(seed=2)}
        found = fingerprint(read_dataset(write_msd(cases)))
        pooled = np.concatenate([image[label > 0] for image, label in cases.values()])
        expected = np.percentile(pooled, [0.5, 30, 99.5], method="inverted_cdf").tolist()
        assert foreground_percentiles(found.cases, 0, [0.5, 30, 99.5]) == expected

    def test_a_large_case_weighs_by_its_voxels(self, write_msd) -> None:
        large = np.arange(30 * 30 * 30, dtype=np.int32).reshape(30, 30, 30)
        small = np.full((5, 5, 4), 1_000_000, np.int32)
        cases = {
            "large": (large, np.ones(large.shape, np.uint8)),
            "small": (small, np.ones(small.shape, np.uint8)),
        }
        found = fingerprint(read_dataset(write_msd(cases)))
        assert found.cases[0].foreground_sample.shape == (1, 4096)
        low, middle, high = foreground_percentiles(found.cases, 0, [0.5, 50, 99.5])
        pooled = np.concatenate([large.ravel(), small.ravel()])
        expected = np.percentile(pooled, [0.5, 50, 99.5]).tolist()
        assert [low, middle, high] == pytest.approx(expected, abs=27_000 / 4096 + 1)

    def test_without_foreground_there_are_none(self, write_msd) -> None:
        image, label = _case()
        found = fingerprint(read_dataset(write_msd({"a": (image, label), "b": (image, label * 0)})))
        with pytest.raises(DataError, match="no foreground"):
            foreground_percentiles(found.cases[1:], 0, [50])


def test_the_description_fits_a_terminal(write_msd) -> None:
    image, label = _case()
    found = fingerprint(read_dataset(write_msd({"a": (image, label), "b": (image, label == 1)}, affine=AFFINE)))
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(describe(found, "axial"))
    text = captured.get()
    assert "Tiny: 2 cases" in text
    assert "SLP (2)" in text
    row = next(line for line in text.splitlines() if "tumour" in line)
    assert "0.001" in row
    assert "1 cases" in row
    assert "…" not in text


def test_real_mr(shared_data: Path) -> None:
    found = fingerprint(read_dataset(shared_data / "Task04_Hippocampus"))
    assert len(found.cases) == 200
    assert all(set(case.classes) == {1, 2} for case in found.cases)
    assert all(1 < case.classes[1].volume_ml < 3 for case in found.cases)
    scales = [case.intensities[0][1] for case in found.cases]
    assert max(scales) > 100 * min(scales)


def test_real_ct(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "Task91_SarcomaCT")
    found = fingerprint(replace(dataset, cases=dataset.cases[:3]))
    assert {case.orientation for case in found.cases} == {"LPS"}
    assert all(case.spacing_mm == pytest.approx((0.977, 0.977, 3.27), abs=0.01) for case in found.cases)
    low, high = foreground_percentiles(found.cases, 0, [0.5, 99.5])
    assert -300 < low < 0 < high < 300
