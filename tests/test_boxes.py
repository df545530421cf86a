"""MedSAM-2 with a box on every second slice, the whole way: trained, tested, predicted, measured; and without boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sam2_3dmed.cli.main import app
from sam2_3dmed.config import read_recipe, with_settings
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import ConfigError, DataError, UserError, VolumeError
from sam2_3dmed.experiments.run_executor import measure_prediction
from sam2_3dmed.export.run import export_run
from sam2_3dmed.model.build import build_network
from sam2_3dmed.report.build import write_report
from sam2_3dmed.run.run_folder import SPLIT_FILE, load_model, read_record, read_weights
from sam2_3dmed.run.train import TrainRequest, train
from sam2_3dmed.run.train import test_run as run_test
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

SETTINGS = ["model.size=nano", "model.image_size=64", "slab_slices=3", "training.epochs=1", "training.batch_size=2"]
SETTINGS += [
    "training.samples_per_epoch=4",
    "training.single_slice_fraction=0",
    "training.workers=0",
    "training.validate_every=1",
]
SETTINGS += ["inference.direction=both", "inference.flips=true"]


def trained(data: Path, folder: Path, *settings: str) -> Path:
    config = with_settings(read_recipe("paper_scratch+medsam2_boxes"), [*SETTINGS, *settings])
    run = train(TrainRequest(data, folder, recipe=config, weights="none", cache=folder.parent / "cache"))
    assert run is not None
    return run


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(blobs, tmp_path_factory.mktemp("boxes") / "run")


def command(*arguments: object) -> UserError | None:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exit_code == 0 or isinstance(result.exception, UserError), result.output
    return result.exception


def test_the_run_says_what_it_is_told(run: Path) -> None:
    record = read_record(run)
    assert record.needs_reference
    assert record.about.endswith("boxes from the reference on one slice of 2")


def test_every_way_to_predict_draws_the_same_boxes(run: Path, blobs: Path, tmp_path: Path) -> None:
    run_test(run, blobs)
    cases = [case for case in read_dataset(blobs).cases if case.name in Split.read(run / SPLIT_FILE).test]
    assert cases
    images = [case.images[0] for case in cases]
    assert command(*images, "-m", run, "-o", tmp_path, "--boxes-from", cases[0].label.parent) is None
    predictor = load_model(run)
    for case in cases:
        tested = read_label(run / "predictions" / f"{case.name}.nii.gz").array
        assert np.array_equal(read_label(tmp_path / f"{case.name}.nii.gz").array, tested)
        mask = predictor(Volume.read(case.images[0]), reference=read_label(case.label))
        assert np.array_equal(mask.array, tested)
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert {line["reference"] for line in lines} == {str(case.label.resolve()) for case in cases}
    assert measure_prediction(run, blobs)["gflop"] > 0
    assert write_report(run).is_file()


@pytest.mark.parametrize("mode", ["slabs", "stream"])
def test_the_reference_gives_boxes_and_nothing_else(run: Path, blobs: Path, mode: str) -> None:
    """What lies within a box does not count, nor what lies on slices between; where a box is, does."""
    predictor = load_model(run, mode=mode, direction="both")
    torch.manual_seed(0)
    with torch.no_grad():  # a few steps taught it little of corners
        predictor.network.segmentation.mask_decoder.point_embed.weight.normal_(std=3)
    image, truth = Volume.read(blobs / "imagesTr" / "blob_00.nii.gz"), read_label(blobs / "labelsTr" / "blob_00.nii.gz")
    hollow, moved = truth.array.copy(), np.roll(truth.array, 6, axis=0)
    hollow[:, :, 1::2] = 3
    for index in range(0, hollow.shape[2], 2):
        for value in (1, 3):
            inner = [
                slice(ends.min() + 1, ends.max())
                for ends in np.nonzero(truth.array[:, :, index] == value)
                if len(ends) and np.ptp(ends) > 2
            ]
            if len(inner) == 2:
                plane = hollow[:, :, index]
                plane[tuple(inner)][plane[tuple(inner)] == value] = 0
    assert not np.array_equal(hollow, truth.array)
    masks = [predictor(image, reference=Volume(array, truth.affine)).array for array in (truth.array, hollow, moved)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_a_frozen_encoder_and_its_kept_features_go_with_boxes(blobs: Path, tmp_path: Path) -> None:
    run = trained(blobs, tmp_path / "run", "training.encoder=frozen", "feature_cache.views=2")
    record = read_record(run)
    fresh = build_network(record.recipe.model, record.plan.num_classes).state_dict()
    learnt = read_weights(run / "model.safetensors")
    name = "segmentation.mask_decoder.no_mask_embed.weight"
    assert fresh.keys() == learnt.keys()
    assert not torch.equal(fresh[name], learnt[name])


def test_who_gives_no_boxes_or_too_many_is_told(run: Path, blob_run: Path, blobs: Path, tmp_path: Path) -> None:
    image, label = blobs / "imagesTr" / "blob_00.nii.gz", blobs / "labelsTr" / "blob_00.nii.gz"
    for model, arguments, words in (
        (run, [], "--boxes-from has the masks"),
        (blob_run, ["--boxes-from", label], "is for a model trained with model.box_every or by pretrain"),
        (run, ["--boxes-from", blobs / "imagesTs"], "no such file or folder"),
        (run, ["--boxes-from", run], "no image in this folder, and predictions has 2 (blob_01.nii.gz, blob_11.nii.gz)"),
    ):
        error = command(image, "-m", model, "-o", tmp_path / "masks", *arguments)
        assert words in str(error)
    (tmp_path / "other.nii.gz").write_bytes(label.read_bytes())
    error = command(blobs / "imagesTr", "-m", run, "-o", tmp_path / "masks", "--boxes-from", tmp_path)
    assert isinstance(error, DataError)
    assert "has no mask blob_00.nii.gz and 11 more" in str(error)
    error = command(image, "-m", run, "-o", label.parent, "--boxes-from", label.parent)
    assert "a mask would replace this input" in str(error)
    volume, reference = Volume.read(image), read_label(label)
    with pytest.raises(ConfigError, match="no reference to draw them"):
        load_model(run)(volume)
    with pytest.raises(ConfigError, match="takes no boxes"):
        load_model(blob_run)(volume, reference=reference)
    with pytest.raises(VolumeError, match="holds none of the classes' values, 1, 3"):
        load_model(run)(volume, reference=reference.with_array((reference.array > 0) * np.uint8(255)))
    with pytest.raises(VolumeError, match="not on the grid"):
        load_model(run)(volume, reference=Volume(reference.array[1:], reference.affine))
    with pytest.raises(ConfigError, match=r"draws random numbers|takes prompts"):
        export_run(run, tmp_path / "onnx")
