import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from sam2_3dmed.data.dataset import Case
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.processes.map_cases import map_cases, progress_bar

CASES = [Case(name, (Path(f"{name}.nii.gz"),), None) for name in "abcd"]


def _fail_for_b_and_d(case: Case) -> str:
    if case.name in "bd":
        raise VolumeError(f"{case.name} is broken")
    return case.name


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_results_are_in_the_order_of_the_cases(workers: int | None) -> None:
    seen: list[tuple[int, int]] = []
    results = map_cases(attrgetter("name"), CASES, workers=workers, progress=lambda *state: seen.append(state))
    assert results == list("abcd")
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_every_case_is_tried_and_all_failures_are_told() -> None:
    seen: list[int] = []
    with pytest.raises(DataError) as caught:
        map_cases(_fail_for_b_and_d, CASES, workers=0, progress=lambda done, _: seen.append(done))
    assert str(caught.value) == "2 of 4 cases cannot be used:\nb is broken\nd is broken"
    assert seen == [1, 2, 3, 4]


def test_one_failure_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^b is broken$"):
        map_cases(_fail_for_b_and_d, CASES[:2], workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_end_the_work(workers: int) -> None:
    with pytest.raises(AttributeError):
        map_cases(attrgetter("nothing"), CASES, workers=workers)


def test_a_dead_worker_is_told_in_one_line() -> None:
    class Deadly:
        """Ends the process that receives it."""

        def __reduce__(self) -> Any:
            return os._exit, (1,)

    cases: Any = [CASES[0], Deadly(), CASES[1]]
    with pytest.raises(DataError, match=r"^case 2 of 3: worker processes died of it twice: .*; workers=0 does without"):
        map_cases(attrgetter("name"), cases, workers=1)


def test_small_data_sets_start_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sam2_3dmed.processes.map_cases as pool

    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a pool was started")

    monkeypatch.setattr(pool, "share_out", no_pool)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    map_cases(attrgetter("name"), CASES)
    large = tmp_path / "large.nii.gz"
    large.touch()
    os.truncate(large, 2**30)  # sparse: takes no space
    with pytest.raises(AssertionError, match="a pool was started"):
        map_cases(attrgetter("name"), [Case("a", (large,), None), *CASES])


def test_the_bar_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Reading") as progress:
        map_cases(attrgetter("name"), CASES, workers=0, progress=progress)
    printed = capsys.readouterr()
    assert "Reading" in printed.err
    assert "4/4" in printed.err
    assert printed.out == ""


def test_a_bar_that_never_moved_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError), progress_bar("Reading"):
        raise DataError("x: no such folder")
    assert capsys.readouterr().err.strip() == ""


def test_what_is_small_is_for_the_caller_to_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sam2_3dmed.processes.map_cases as pool

    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a pool was started")

    monkeypatch.setattr(pool, "share_out", no_pool)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bytes(100))
    cases = [Case("a", (path,), None)]
    map_cases(attrgetter("name"), cases, worth_a_pool_bytes=101)
    with pytest.raises(AssertionError, match="a pool was started"):
        map_cases(attrgetter("name"), cases, worth_a_pool_bytes=100)
