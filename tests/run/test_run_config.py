"""Records of several kinds, told apart by their kind."""

from pathlib import Path

import pytest

from sam2_3dmed.baselines.recipe import patch_recipe
from sam2_3dmed.baselines.spec import Intensities, PatchSpec
from sam2_3dmed.config import ChannelPlan, Plan
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.run.run_config import CONFIG_FILE, PATCH_KIND, PatchRecord, RunRecord, Sam2Record, read_sam2_record

PLAN = Plan(
    dataset="Test", channels=(ChannelPlan(name="CT", normalisation="fixed", low=0, high=1),), labels={1: "liver"}
)


@pytest.fixture
def patches(tmp_path: Path) -> PatchRecord:
    spec = PatchSpec(
        system="mednext_b",
        size="full",
        spacing_mm=(5, 0.8, 0.8),
        patch=(32, 128, 128),
        intensities=(Intensities(mean=0.5, std=0.1),),
        num_classes=1,
        network={"variant": "b", "kernel": 3},
    )
    record = PatchRecord(
        kind=PATCH_KIND, model=spec, plan=PLAN, recipe=patch_recipe("mednext_b"), weights="none", versions={}
    )
    record.write(tmp_path)
    return record


def test_each_kind_is_read_as_what_it_is(patches: PatchRecord, tmp_path: Path, blob_run: Path) -> None:
    assert RunRecord.read(tmp_path) == patches
    ours = RunRecord.read(blob_run)
    assert isinstance(ours, Sam2Record)
    assert ours.about == "size nano, 64 pixels, axial slices"
    assert patches.about == "MedNeXt-B, full, patches of 32 x 128 x 128 voxels of 5 x 0.8 x 0.8 mm"


def test_what_is_for_our_runs_says_so(patches: PatchRecord, tmp_path: Path, blob_run: Path) -> None:
    assert read_sam2_record(blob_run, "export") == RunRecord.read(blob_run)
    with pytest.raises(WeightsError, match=r": export is for runs of SAM2-3dMed, and this is one of MedNeXt-B, full"):
        read_sam2_record(tmp_path, "export")


def test_the_checksum_is_of_what_decides_masks(patches: PatchRecord) -> None:
    other = patches.model_copy(update={"weights": "elsewhere", "recipe": patch_recipe("mednext_b", ["split.seed=1"])})
    assert other.sha256() == patches.sha256()
    moved = patches.model.model_copy(update={"patch": (16, 16, 16)})
    assert patches.model_copy(update={"model": moved}).sha256() != patches.sha256()


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("kind: vnet", WeightsError, "unknown kind of model 'vnet'; known are sam2_3dmed, patches"),
        ("kind: patches", ConfigError, "model: Field required"),
        ("a: 1", ConfigError, "kind: Field required"),
        ("[]", ConfigError, "expected keys and values, found list"),
    ],
)
def test_broken_records(text: str, error: type[Exception], line: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(error, match=line):
        RunRecord.read(tmp_path)
