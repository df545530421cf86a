"""Mutations of every kind of file that is read: what comes is a line of ours, or a result that can be right."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sam2_3dmed.errors import UserError

from . import dicom, images, stored, texts
from .kinds import Kind
from .mutations import mutated

KINDS: dict[str, Kind] = {**images.KINDS, **texts.KINDS, **dicom.KINDS, **stored.KINDS}
FEW, MANY = 3, 80
REGRESSIONS = [
    *(("nifti-2", 169), ("mha-compressed", 30), ("mha-compressed", 39), ("mhd-voxels", 1), ("config", 30)),
    *(("dicom-slice", 1), ("dicom-slice", 24), ("dicom-slice", 106), ("dicom-slice", 125), ("dicom-slice-bytes", 35)),
    *(("dicom-slice-bytes", 133), ("dicom-rle", 130), ("dicom-rtstruct", 26), ("dicom-seg", 12)),
    *(("cache-image", 6), ("cache-image", 19), ("cache-label", 187), ("onnx", 75)),
]
"""Seeds that failed once."""

Whole = Callable[[str], tuple[Path, bytes, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_series) -> Whole:
    """The file of a kind, the whole content, and what is read from that; made once."""
    made: dict[str, tuple[Path, bytes, Any]] = {}

    def make(name: str) -> tuple[Path, bytes, Any]:
        if name not in made:
            kind, folder = KINDS[name], tmp_path_factory.mktemp(name)
            kind.make(folder, *([write_series] if kind.needs_series else []))
            file = min(folder.glob(kind.file))
            content, result = file.read_bytes(), kind.read(folder)
            kind.check(folder, result, result)
            file.write_bytes(content)
            made[name] = file, content, result
        return made[name]

    return make


def mutation(name: str, seed: int, content: bytes, folder: Path) -> bytes:
    """It does not depend on where the folder is."""
    here, anywhere = str(folder).encode(), b"/folder"
    plain = mutated(content.replace(here, anywhere), KINDS[name].packing, Random(f"{name}-{seed}"))
    return plain.replace(anywhere, here)


def problem(name: str, seed: int, whole: Whole, within_limits: Callable[[], Any]) -> str | None:
    """What is wrong after the mutation of this seed, if anything is."""
    kind, (file, content, result) = KINDS[name], whole(name)
    folder = file.parents[kind.file.count("/")]
    file.write_bytes(mutation(name, seed, content, folder))
    try:
        with within_limits():
            kind.check(folder, kind.read(folder), result)
    except UserError as error:
        text = str(error)
        fits = 0 < len(text) < 2000 and "Traceback" not in text
        return None if fits else f"{name}-{seed}: {len(text)} characters: {text[:300]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = "a wrong result" if isinstance(error, AssertionError) else type(error).__name__
        return f"{name}-{seed}: {what}: {error}"[:1000]
    finally:
        file.write_bytes(content)
    return None


def problems(name: str, seeds: range, *tools: Any) -> list[str]:
    return [found for seed in seeds if (found := problem(name, seed, *tools))]


@pytest.mark.parametrize("name", KINDS)
def test_some_mutations(name: str, whole: Whole, within_limits) -> None:
    assert not problems(name, range(FEW), whole, within_limits)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_many_mutations(name: str, whole: Whole, within_limits) -> None:
    assert not problems(name, range(FEW, MANY), whole, within_limits)


@pytest.mark.parametrize(("name", "seed"), REGRESSIONS)
def test_what_failed_once(name: str, seed: int, whole: Whole, within_limits) -> None:
    assert not problem(name, seed, whole, within_limits)
