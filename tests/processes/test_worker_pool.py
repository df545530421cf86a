"""Processes that die: what they had in hand is tried again, alone, and nothing but the case that kills is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.processes.worker_pool import Died, share_out

Report = Callable[[int, Any], None]


def double(place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    for index, case in cases:
        report(index, (place, 2 * case))


def collected(work: Any, cases: Sequence[Any], places: Sequence[Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for index, result in share_out(work, cases, places):
        assert index not in found, "told twice"
        found[index] = result
    return found


def test_every_case_has_its_result_from_one_of_the_places() -> None:
    found = collected(double, range(20), ["cuda:0", "cuda:1"])
    assert {index: value for index, (_, value) in found.items()} == {index: 2 * index for index in range(20)}
    assert {place for place, _ in found.values()} <= {"cuda:0", "cuda:1"}


def test_no_more_processes_than_cases() -> None:
    assert collected(double, [21], ["first", "second"]) == {0: ("first", 42)}


def test_nothing_to_do_starts_nothing() -> None:
    assert collected(double, [], ["first"]) == {}


def _kill(root: Path, once: bool, place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    """Case 3 kills; its process has been handed another one by then."""
    for index, case in cases:
        (root / f"{index}.{time.monotonic_ns()}.tried").touch()
        if case == 3 and not (once and (root / "killed").exists()):
            (root / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        report(index, case)


@pytest.mark.parametrize("places", [["a"], ["a", "b"]])
def test_a_process_that_is_killed_once_costs_nothing(places: list[str], tmp_path: Path) -> None:
    work = partial(_kill, tmp_path, True)
    assert collected(work, range(8), places) == {index: index for index in range(8)}
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("places", [["a"], ["a", "b"]])
def test_a_case_that_kills_twice_is_told_and_costs_only_itself(places: list[str], tmp_path: Path) -> None:
    work = partial(_kill, tmp_path, False)
    found = collected(work, range(8), places)
    died = found.pop(3)
    assert isinstance(died, Died)
    assert "died of it twice" in died.reason
    assert "-9" in died.reason
    assert found == {index: index for index in range(8) if index != 3}
    assert len(list(tmp_path.glob("3.*.tried"))) == 2


def _dies_as_it_starts(place: str, cases: Iterator[tuple[int, int]], report: Report) -> None:
    if place == "small":
        os.kill(os.getpid(), signal.SIGKILL)
    double(place, cases, report)


def test_one_that_cannot_start_leaves_its_cases_to_the_others() -> None:
    found = collected(_dies_as_it_starts, range(6), ["small", "large"])
    assert found == {index: ("large", 2 * index) for index in range(6)}


def test_none_that_can_start_is_an_error() -> None:
    with pytest.raises(DataError, match="all worker processes died as they started"):
        collected(_dies_as_it_starts, range(6), ["small", "small"])


def _refuse(place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    raise VolumeError(f"no model at {place}")


class LocalError(Exception):
    """Cannot be pickled: two arguments, one kept."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def _strange(place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    error = LocalError("odd", "thing")
    error.hook = lambda: None  # type: ignore[attr-defined]
    raise error


def _finds_no_file(place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    next(cases)
    raise FileNotFoundError("scratch is gone")


def test_what_the_work_raises_comes_through() -> None:
    with pytest.raises(FileNotFoundError, match="scratch is gone"):  # no sign of a death, which is an OSError too
        collected(_finds_no_file, range(3), ["here"])
    with pytest.raises(VolumeError, match="no model at here"):
        collected(_refuse, range(3), ["here"])
    with pytest.raises(RuntimeError, match="LocalError: odd"):
        collected(_strange, range(3), ["here"])


class Counted:
    """Counts how many were handed out."""

    given = 0

    def __reduce__(self) -> Any:
        Counted.given += 1
        return int, ("1",)


def test_cases_are_handed_out_as_they_are_worked_off() -> None:
    """However many there are, memory holds a few of them."""
    cases: list[Any] = [Counted() for _ in range(30)]
    Counted.given = 0
    for done, _ in enumerate(share_out(double, cases, ["a", "b"]), start=1):
        assert Counted.given <= done + 4
    assert Counted.given == 30


def test_one_that_stops_listening_ends_the_processes() -> None:
    results = share_out(_pids, range(100), ["a"])
    _, pid = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _pids(place: Any, cases: Iterator[tuple[int, int]], report: Report) -> None:
    for index, _ in cases:
        report(index, os.getpid())
        time.sleep(0.01)
