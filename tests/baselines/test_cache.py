"""Cases on the common grid: what is kept, what is made anew, and where classes are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_3dmed.baselines import cache
from sam2_3dmed.baselines.cache import build_patch_cache
from sam2_3dmed.baselines.recipe import PatchSpec


def test_grids_come_from_the_headers(balls: Any) -> None:
    assert balls.cases[0].grid == ((7, 28, 24), (3.0, 1.5, 1.5))


def test_a_grid_of_its_own_is_what_was_prepared(
    balls: Any, make_spec: Callable[..., PatchSpec], tmp_path: Path
) -> None:
    spec = make_spec()
    case = build_patch_cache(balls.cases[:1], spec, balls.plan.scheme.indexed, tmp_path)[0]
    prepared = balls.cases[0].cached
    assert np.array_equal(case.label, prepared.label)
    assert case.image == pytest.approx(spec.normalise(np.asarray(prepared.image)), abs=0.01)
    inside = case.image[0][case.label > 0].astype(float)
    assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))


def test_places_are_voxels_of_their_class(balls: Any, make_spec: Callable[..., PatchSpec], tmp_path: Path) -> None:
    case = build_patch_cache(balls.cases[:1], make_spec(), balls.plan.scheme.indexed, tmp_path)[0]
    rng = np.random.default_rng(0)
    for k in (1, 2):
        assert case.counts[k] == int((case.label == k).sum())
        assert {int(case.label[tuple(case.random_voxel(k, rng))]) for _ in range(50)} == {k}


def test_large_classes_are_sampled(
    balls: Any, make_spec: Callable[..., PatchSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST_CENTRES", 10)
    case = build_patch_cache(balls.cases[:1], make_spec(), balls.plan.scheme.indexed, tmp_path)[0]
    assert case.counts == {1: 10, 2: 10}
    assert len({tuple(case.random_voxel(2, np.random.default_rng(i))) for i in range(99)}) == 10


def test_another_grid_is_another_folder_and_whole_cases_are_kept(
    balls: Any, make_spec: Callable[..., PatchSpec], tmp_path: Path
) -> None:
    case = build_patch_cache(balls.cases[:1], make_spec(), balls.plan.scheme.indexed, tmp_path)[0]
    coarse = build_patch_cache(
        balls.cases[:1], make_spec("unet", "model.spacing_mm=[3, 3, 3]"), balls.plan.scheme.indexed, tmp_path
    )[0]
    assert coarse.label.shape == (7, 14, 12)
    assert coarse.folder != case.folder
    image = case.folder / f"{case.name}.image.npy"
    before = image.stat().st_mtime_ns
    assert build_patch_cache(balls.cases[:1], make_spec(), balls.plan.scheme.indexed, tmp_path)[0].counts == case.counts
    assert image.stat().st_mtime_ns == before
    (case.folder / f"{case.name}.json").write_text('{"key": "another"}')
    build_patch_cache(balls.cases[:1], make_spec(), balls.plan.scheme.indexed, tmp_path)
    assert image.stat().st_mtime_ns != before
