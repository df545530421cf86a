"""The records of several systems."""

from pathlib import Path

import pytest
import yaml

from sam2_3dmed.baselines.recipe import Intensities, PatchRecord, PatchSpec
from sam2_3dmed.config import ChannelPlan, NetworkConfig, Plan, TrainingConfig
from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.run.run_config import CONFIG_FILE
from sam2_3dmed.run.run_folder import read_record, read_sam2_record
from sam2_3dmed.run.systems import find_system

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
        system="mednext_b", model=spec, plan=PLAN, recipe=find_system("mednext_b").recipe(), weights="none", versions={}
    )
    record.write(tmp_path)
    return record


def test_each_kind_is_read_as_what_it_is(patches: PatchRecord, tmp_path: Path, blob_run: Path) -> None:
    assert read_record(tmp_path) == patches
    ours = read_record(blob_run)
    assert (ours.system, ours.has_auxiliary, patches.has_auxiliary) == ("sam2_3dmed", True, False)
    assert ours.about == "size nano, 64 pixels, axial slices"
    assert patches.about == "MedNeXt-B, full, patches of 32 x 128 x 128 voxels of 5 x 0.8 x 0.8 mm"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("labels", {1: "liver", 2: "tumour"}, "the plan has 2 classes, and the network 1"),
        ("channels", [PLAN.channels[0].model_dump()] * 2, "the plan has 2 channels, and the network 1"),
    ],
)
def test_a_plan_with_other_classes_than_the_network(
    patches: PatchRecord, tmp_path: Path, key: str, value: object, line: str
) -> None:
    content = yaml.safe_load((tmp_path / CONFIG_FILE).read_text())
    content["plan"][key] = value
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=line):
        read_record(tmp_path)


def test_what_is_for_our_runs_says_so(patches: PatchRecord, tmp_path: Path, blob_run: Path) -> None:
    assert read_sam2_record(blob_run, "export") == read_record(blob_run)
    with pytest.raises(WeightsError, match=r": export is for runs of SAM2-3dMed, and this is one of MedNeXt-B, full"):
        read_sam2_record(tmp_path, "export")


def test_the_checksum_is_of_what_decides_masks(patches: PatchRecord) -> None:
    other = patches.model_copy(
        update={"weights": "elsewhere", "recipe": find_system("mednext_b").recipe(settings=["split.seed=1"])}
    )
    assert other.sha256() == patches.sha256()
    moved = patches.model.model_copy(update={"patch": (16, 16, 16)})
    assert patches.model_copy(update={"model": moved}).sha256() != patches.sha256()


def test_the_checksum_of_our_method_covers_network_and_plan(blob_run: Path) -> None:
    record = read_sam2_record(blob_run, "export")
    other = record.recipe.model_copy(update={"training": TrainingConfig(seed=5)})
    assert record.model_copy(update={"weights": "elsewhere", "recipe": other}).sha256() == record.sha256()
    changed = record.recipe.model_copy(update={"model": NetworkConfig(image_size=128)})
    assert record.model_copy(update={"recipe": changed}).sha256() != record.sha256()
    assert record.model_copy(update={"plan": PLAN}).sha256() != record.sha256()


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("format: 2\nsystem: vnet", ConfigError, "no system 'vnet'; did you mean 'unet'"),
        ("format: 2\nsystem: unet", ConfigError, "model: Field required"),
        ("format: 2", ConfigError, "no system 'None'"),
        ("kind: patches", WeightsError, "another version wrote this run"),
        ("[]", ConfigError, "expected keys and values, found list"),
    ],
)
def test_broken_records(text: str, error: type[Exception], line: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(error, match=line):
        read_record(tmp_path)
