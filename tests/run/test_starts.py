"""What runs begin with, by the kind of recipe; the training that follows is seen in test_train and baselines."""

from pathlib import Path

import pytest

from sam2_3dmed.baselines.recipes import system_recipe
from sam2_3dmed.config import Plan, read_recipe, with_settings
from sam2_3dmed.data import fingerprint
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.run.run_config import PatchRecord, Sam2Record
from sam2_3dmed.run.starts import PatchStart, Sam2Start, make_start
from sam2_3dmed.run.train_request import TrainRequest
from sam2_3dmed.training.distributed import DistributedContext


def begin(data: Path, out: Path, **request):
    return make_start(
        TrainRequest(data, weights="none", **request), read_dataset(data), out, None, DistributedContext()
    )


@pytest.fixture
def ours(blobs: Path, tmp_path: Path) -> Sam2Start:
    config = with_settings(read_recipe("scratch"), ["model.size=nano", "model.image_size=64"])
    start = begin(blobs, tmp_path / "ours", config=config)
    assert isinstance(start, Sam2Start)
    return start


def test_ours_begins_with_its_network_and_cases(ours: Sam2Start) -> None:
    assert isinstance(ours.record, Sam2Record)
    assert [case.name for case in ours.training] == list(ours.split.train)
    assert [case.name for case in ours.validation] == list(ours.split.validation)
    assert ours.predictor.network is ours.network


def test_a_patch_system_begins_with_its_own_and_the_same_split(ours: Sam2Start, blobs: Path, tmp_path: Path) -> None:
    start = begin(blobs, tmp_path / "unet", config=system_recipe("unet", ["model.size=small"]), system="unet")
    assert isinstance(start, PatchStart)
    assert isinstance(start.record, PatchRecord)
    assert start.split == ours.split
    assert [case.name for case in start.run.training] == list(ours.split.train)


def test_test_cases_stay_closed(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam2_3dmed.run import starts

    opened: list[str] = []

    def note(catalog, **more):
        opened.extend(catalog.names)
        return fingerprint.fingerprint(catalog, **more)

    monkeypatch.setattr(starts, "fingerprint", note)
    start = begin(blobs, tmp_path / "unet", config=system_recipe("unet", ["model.size=small"]), system="unet")
    assert isinstance(start.record.plan, Plan)
    assert set(opened) == {*start.split.train, *start.split.validation}
    assert not set(opened) & set(start.split.test)
