import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components

from sam2_3dmed.data.phantom import ORIENTATIONS, PHANTOM_LABELS, make_phantom_case, write_phantom_dataset
from sam2_3dmed.errors import DataError
from sam2_3dmed.experiments.threshold_baseline import best_threshold_dice
from sam2_3dmed.volume.volume import Volume, same_grid

NUM_CASES = 8
SHAPE = (64, 64, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "data", num_cases=NUM_CASES, seed=3, shape=SHAPE)


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[tuple[Volume, Volume]]:
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    return [(Volume.read(folder / case["image"]), Volume.read(folder / case["label"])) for case in listed]


@pytest.fixture(scope="module")
def full_size() -> tuple[Volume, Volume]:
    return make_phantom_case(np.random.default_rng(11), orientation="RAS")


def test_the_same_seed_gives_the_same_arrays_and_affines_whatever_the_number_of_cases(
    folder: Path, cases: list[tuple[Volume, Volume]], tmp_path: Path
) -> None:
    again = write_phantom_dataset(tmp_path / "again", num_cases=2, seed=3, shape=SHAPE)
    for index in range(2):
        for part, volume in zip(("imagesTr", "labelsTr"), cases[index], strict=True):
            other = Volume.read(again / part / f"phantom_{index:03d}.nii.gz")
            np.testing.assert_array_equal(other.array, volume.array)
            np.testing.assert_array_equal(other.affine, volume.affine)


def test_other_seeds_and_cases_differ(cases: list[tuple[Volume, Volume]]) -> None:
    assert len({image.array.tobytes() for image, _ in cases}) == NUM_CASES
    first = make_phantom_case(np.random.default_rng(0), shape=(48, 48, 12), orientation="RAS")
    second = make_phantom_case(np.random.default_rng(1), shape=(48, 48, 12), orientation="RAS")
    assert (first[1].array != second[1].array).any()


def test_the_layout_is_the_decathlons(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    assert content["modality"] == {"0": "CT"}
    assert content["labels"] == {"0": "background", "1": "pancreas", "2": "tumour"}
    assert content["numTraining"] == len(content["training"]) == NUM_CASES
    assert content["training"][0] == {
        "image": "./imagesTr/phantom_000.nii.gz",
        "label": "./labelsTr/phantom_000.nii.gz",
    }
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [f"phantom_{index:03d}.nii.gz" for index in range(NUM_CASES)]
    expected = [
        "dataset.json",
        *(f"imagesTr/{name}" for name in names),
        *(f"labelsTr/{name}" for name in names),
    ]
    assert written == sorted(expected)


def test_images_are_int16_and_labels_uint8_on_one_grid(cases: list[tuple[Volume, Volume]]) -> None:
    for image, label in cases:
        assert image.array.dtype == np.int16
        assert label.array.dtype == np.uint8
        assert same_grid(image, label)
        assert sorted(np.unique(label.array)) == [0, *PHANTOM_LABELS]


def test_slices_are_thick_and_axial(cases: list[tuple[Volume, Volume]]) -> None:
    for image, _ in cases:
        r, a, s = image.canonical_spacing_mm
        assert 1.5 <= r <= 2.2
        assert a == pytest.approx(r, rel=1e-4)
        assert 3.99 <= s <= 6.01
        assert s > 1.8 * r


def test_orientations_are_mixed_and_some_grids_are_oblique(cases: list[tuple[Volume, Volume]]) -> None:
    assert [image.orientation for image, _ in cases] == [ORIENTATIONS[i % len(ORIENTATIONS)] for i in range(NUM_CASES)]
    cosines = [np.sort(np.abs(image.affine[:3, :3]) / image.spacing_mm, axis=None)[-3:].min() for image, _ in cases]
    tilts = np.rad2deg(np.arccos(np.minimum(cosines, 1)))
    assert tilts.max() > 2
    assert tilts.max() < 12
    assert len({image.shape for image, _ in cases}) > 2


def test_the_slice_axis_follows_the_orientation() -> None:
    image, label = make_phantom_case(np.random.default_rng(5), shape=(52, 48, 12), orientation="ASR")
    assert image.array.shape == label.array.shape == (48, 12, 52)
    assert image.orientation == "ASR"


def test_orientation_moves_no_voxel_in_the_world() -> None:
    ras, _ = make_phantom_case(np.random.default_rng(5), shape=(52, 48, 12), orientation="RAS")
    lps, _ = make_phantom_case(np.random.default_rng(5), shape=(52, 48, 12), orientation="LPS")
    np.testing.assert_array_equal(lps.array, ras.array[::-1, ::-1])
    np.testing.assert_allclose(lps.affine @ (51, 47, 3, 1), ras.affine @ (0, 0, 3, 1))


def test_intensities_are_plausible_hounsfield_units(full_size: tuple[Volume, Volume]) -> None:
    image, label = full_size
    assert image.array.min() >= -1024
    assert 400 < np.percentile(image.array, 99.9) < 1000
    assert np.median(image.array[:3, :3]) == pytest.approx(-1000, abs=40)
    pancreas, tumour = (float(np.median(image.array[label.array == value])) for value in (1, 2))
    assert 90 < pancreas < 135
    assert 140 < tumour < 215
    assert tumour > pancreas + 20
    # Fat, soft tissue and lung are all there, in the shares of an upper abdomen.
    body = image.array > -950
    shares = [
        ((image.array > low) & (image.array < high)).sum() / body.sum()
        for low, high in ((-140, -50), (20, 160), (-920, -650))
    ]
    assert shares[0] > 0.1
    assert shares[1] > 0.2
    assert shares[2] > 0.03


def test_the_targets_lie_inside_the_body_and_away_from_the_border(cases: list[tuple[Volume, Volume]]) -> None:
    for image, label in cases:
        target = label.array > 0
        assert np.percentile(image.array[target], 5) > -80
        in_plane = [axis for axis in range(3) if image.spacing_mm[axis] < 3]
        inner = tuple(slice(6, -6) if axis in in_plane else slice(None) for axis in range(3))
        assert target.sum() == target[inner].sum()


def test_the_tumour_is_one_piece_within_the_pancreas(full_size: tuple[Volume, Volume]) -> None:
    label = full_size[1].array
    assert (label == 2).sum() >= 150
    assert (label == 1).sum() > (label == 2).sum()
    pieces, num_pieces = components(label == 2)
    assert np.bincount(pieces.ravel())[1:].max() > 0.95 * (label == 2).sum()
    organ_pieces, _ = components(label > 0)
    largest = np.bincount(organ_pieces.ravel())[1:].max()
    assert largest > 0.95 * (label > 0).sum(), num_pieces
    assert (binary_dilation(label == 2) & (label == 1)).any()


def test_a_threshold_finds_neither_target(cases: list[tuple[Volume, Volume]]) -> None:
    score = best_threshold_dice(cases[:5], cases[5:], classes=PHANTOM_LABELS)
    assert set(score.dice) == set(PHANTOM_LABELS)
    assert max(score.dice.values()) <= 0.5
    # A threshold does find something: were the targets absent from the image, this would fail.
    assert score.dice[1] > 0.02


def test_a_finished_data_set_is_left_alone_and_another_is_not_overwritten(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantom_dataset(folder, num_cases=NUM_CASES, seed=3, shape=SHAPE, on_case=lambda *done: calls.append(done))
    assert calls == []
    with pytest.raises(DataError, match=r"dataset\.json: holds another data set"):
        write_phantom_dataset(folder, num_cases=NUM_CASES, seed=4, shape=SHAPE)


def test_progress_comes_case_by_case(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantom_dataset(tmp_path, num_cases=2, seed=0, shape=(48, 48, 14), on_case=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]


def test_bad_requests_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1 case, not 0"):
        write_phantom_dataset(tmp_path, num_cases=0, seed=0)
    with pytest.raises(DataError, match="at least 48 x 48 x 12, not 32 x 96 x 28"):
        make_phantom_case(np.random.default_rng(0), shape=(32, 96, 28))
    # The number of slices varies by 2, which must not fail half way through.
    with pytest.raises(DataError, match="at least 48 x 48 x 14"):
        write_phantom_dataset(tmp_path, num_cases=30, seed=0, shape=(48, 48, 12))
    assert list(tmp_path.iterdir()) == []
