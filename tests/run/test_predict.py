"""One request for prediction: paths, open files, arrays and volumes in, files or masks in memory out."""

import gzip
import io
import threading
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed import PredictRequest, Volume, load_model, predict
from sam2_3dmed.errors import Cancelled, ConfigError, DataError, VolumeError

FORWARD = ("inference.direction=forward",)


@pytest.fixture(scope="module")
def image(blobs: Path) -> Path:
    return blobs / "imagesTr" / "blob_00.nii.gz"


@pytest.fixture(scope="module")
def expected(blob_run: Path, image: Path) -> Volume:
    mask = load_model(blob_run, direction="forward")(Volume.read(image))
    assert len(np.unique(mask.array)) > 1, "empty: nothing to compare"
    return mask


def test_every_kind_of_input_gives_the_same_mask(blob_run: Path, image: Path, expected: Volume, tmp_path: Path) -> None:
    """A RAS grid of the same spacing, so that an array with spacing alone is the same volume."""
    volume = Volume.read(image)
    turned = Volume(volume.array[::-1, ::-1], np.diag([1.5, 1.5, 3.0, 1.0]))
    turned.write(tmp_path / "scan.nii.gz")
    (tmp_path / "plain.nii").write_bytes(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes()))
    with (tmp_path / "plain.nii").open("rb") as plain, (tmp_path / "scan.nii.gz").open("rb") as packed:
        uploaded = io.BytesIO((tmp_path / "scan.nii.gz").read_bytes())
        inputs = [tmp_path / "scan.nii.gz", plain, uploaded, turned.array, turned]
        outcomes = predict(PredictRequest(blob_run, inputs, settings=FORWARD, spacing_mm=(1.5, 1.5, 3.0)))
        (again,) = predict(PredictRequest(blob_run, [packed], settings=FORWARD))
    assert [outcome.name for outcome in outcomes] == ["scan", "plain", "input_2", "input_3", "input_4"]
    for outcome in [*outcomes, again]:
        assert outcome.error is None
        assert outcome.output is None
        assert np.array_equal(outcome.mask.array, expected.array[::-1, ::-1])
        assert np.array_equal(outcome.mask.affine, turned.affine)


def test_an_array_with_an_affine(blob_run: Path, image: Path, expected: Volume) -> None:
    volume = Volume.read(image)
    (outcome,) = predict(PredictRequest(blob_run, [volume.array], affine=volume.affine, settings=FORWARD))
    assert np.array_equal(outcome.mask.array, expected.array)
    for given in ({}, {"affine": volume.affine, "spacing_mm": (1, 1, 1)}):
        with pytest.raises(ConfigError, match="input_1: an array needs either affine or spacing_mm"):
            predict(PredictRequest(blob_run, [volume.array], **given))
    with pytest.raises(VolumeError, match="a volume has 3 axes"):
        predict(PredictRequest(blob_run, [np.zeros((2, 2))], spacing_mm=(1, 1, 1)))


def test_a_loaded_model_serves_many_requests(blob_run: Path, image: Path, expected: Volume, tmp_path: Path) -> None:
    segmenter = load_model(blob_run, direction="forward")
    (outcome,) = predict(PredictRequest(segmenter, [Volume.read(image)], save_auxiliary=True))
    assert np.array_equal(outcome.mask.array, expected.array)
    assert outcome.auxiliary.boundary.shape == expected.shape
    (written,) = predict(PredictRequest(segmenter, [image], out=tmp_path / "out", probabilities=True))
    assert np.array_equal(Volume.read(written.output).array, expected.array)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"blob_00.nii.gz", "probabilities"}


def test_what_is_in_memory_is_never_passed_over(blob_run: Path, image: Path, tmp_path: Path) -> None:
    request = PredictRequest(blob_run, [image, Volume.read(image)], out=tmp_path / "out", settings=FORWARD)
    assert [outcome.earlier for outcome in predict(request)] == [False, False]
    assert [(outcome.output.name, outcome.earlier) for outcome in predict(request)] == [
        ("blob_00.nii.gz", True),
        ("input_1.nii.gz", False),
    ]


def test_a_broken_input_fails_alone(blob_run: Path, image: Path) -> None:
    broken, whole = predict(PredictRequest(blob_run, [io.BytesIO(b"no image"), Volume.read(image)], settings=FORWARD))
    assert broken.error == "input_1: open file: this is not a NIfTI image"
    assert broken.mask is None
    assert whole.mask is not None


def test_slices_are_counted_and_another_thread_cancels(blob_run: Path, image: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    predict(PredictRequest(blob_run, [image], settings=FORWARD, on_slice=lambda *state: seen.append(state)))
    assert seen == [("blob_00", done, 7) for done in range(1, 8)]

    cancel, asked = threading.Event(), threading.Event()
    canceller = threading.Thread(target=lambda: asked.wait(60) and cancel.set())
    canceller.start()

    def on_slice(name: str, done: int, total: int) -> None:
        seen.append((name, done, total))
        asked.set()
        canceller.join()

    seen.clear()
    with pytest.raises(Cancelled):
        predict(PredictRequest(blob_run, [image], settings=FORWARD, on_slice=on_slice, cancel=cancel))
    assert seen == [("blob_00", 1, 7)]


def test_requests_that_cannot_be_carried_out(blob_run: Path, image: Path, tmp_path: Path) -> None:
    volume = Volume.read(image)
    with pytest.raises(ConfigError, match="nothing to predict"):
        predict(PredictRequest(blob_run, []))
    for changes, line in (
        ({"workers": 2}, "workers needs an output folder"),
        ({"probabilities": True}, "probabilities needs an output folder"),
        ({"format": "nrrd"}, "format needs an output folder"),
    ):
        with pytest.raises(ConfigError, match=line):
            predict(PredictRequest(blob_run, [volume], **changes))
    segmenter = load_model(blob_run)
    for changes in ({"settings": FORWARD}, {"device": "cpu"}, {"backend": "onnxruntime"}, {"workers": 2}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} is for a run folder"):
            predict(PredictRequest(segmenter, [volume], out=tmp_path / "out", **changes))
    with image.open("rb") as file, pytest.raises(ConfigError, match="open files are read by this process"):
        predict(PredictRequest(blob_run, [file], out=tmp_path / "out", workers=2))
    with pytest.raises(DataError, match="2 inputs have the name 'blob_00'"), image.open("rb") as file:
        predict(PredictRequest(blob_run, [image, file], out=tmp_path / "out"))
