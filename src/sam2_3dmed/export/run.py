"""Export of a run folder as ONNX files that are checked against PyTorch."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.export.check import TOLERANCE, Differences, check_encoder, check_slab, check_slices
from sam2_3dmed.export.graph import OPSET, SlabGraph, encoder_onnx, slab_onnx, with_record
from sam2_3dmed.inference.manifest import checksum
from sam2_3dmed.inference.onnx_network import ENCODER_FILE, FEATURES, FORMAT, OnnxRecord, require_onnx, slab_file
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.processes.atomic import replacing, write_text
from sam2_3dmed.run.run_config import CONFIG_FILE, Sam2Record
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, read_sam2_record, remember_codes, remembered_codes

logger = logging.getLogger(__name__)


def export_run(
    run: Path,
    folder: Path,
    *,
    check: Path | None = None,
    lengths: Sequence[int] = (),
    tolerance: float = TOLERANCE,
) -> dict[Path, float]:
    """Write encoder.onnx, slab_D.onnx and config.yaml. Each ONNX file is checked before it is written.

    Args:
        run: Run folder of a trained model.
        folder: New, empty, of an earlier export, or the run's own.
        check: Volume to check on. Without it: a case of the run's data set, else a phantom.
        lengths: Lengths of further slabs, one file each, for volumes shorter than D.
        tolerance: Largest relative difference from PyTorch.

    Returns:
        ONNX file -> its largest relative difference from PyTorch.

    Raises:
        UserError: the run is not finished, the extra is missing, the folder holds another run, or a file differs too
            much.
    """
    record = _exportable(run)
    predictor = cast(Predictor, load_model(run, device="cpu"))
    network = predictor.network
    depth = predictor.slab_slices
    for length in lengths:
        if not 1 <= length < depth:
            raise ConfigError(f"--length {length}: expected 1 to {depth - 1}, since the run's slabs have {depth}")
    _prepare_folder(run, folder)
    source, slices = check_slices(run, check, predictor.preprocessing, depth)
    make_record = _record_maker(run, record, network.encoder.image_size, source, tolerance)
    network.eval()
    model = encoder_onnx(network.encoder, len(record.plan.channels))
    found = check_encoder(model, network, slices[:depth])
    of_encoder = partial(make_record, part="encoder", slab_slices=None, outputs=FEATURES)
    written = {folder / ENCODER_FILE: _write(folder / ENCODER_FILE, model, found, of_encoder)}
    for length in sorted({depth, *lengths}):
        model, outputs, file = slab_onnx(network, length), SlabGraph(network).outputs, folder / slab_file(length)
        found = check_slab(model, network, slices, length, outputs)
        written[file] = _write(
            file, model, found, partial(make_record, part="slab", slab_slices=length, outputs=outputs)
        )
    if folder.resolve() != run.resolve():
        write_text(folder / CONFIG_FILE, (run / CONFIG_FILE).read_text(encoding="utf-8"))
        remember_codes(folder, remembered_codes(run))
    return written


def _exportable(run: Path) -> Sam2Record:
    """Raise UserError if the run cannot become ONNX."""
    require_onnx("onnx", "onnxruntime")
    record = read_sam2_record(run, "export")
    model = record.recipe.model
    if model.memory != "recent":
        raise ConfigError(f"{run}: model.memory {model.memory} draws random numbers and cannot become ONNX")
    if record.needs_reference:
        raise ConfigError(f"{run}: takes boxes (model.box_every), for which an exported file has no input")
    return record


def _record_maker(
    run: Path, record: Sam2Record, image_size: int, source: str, tolerance: float
) -> Callable[..., OnnxRecord]:
    """The part of the record that all files of an export share."""
    return partial(
        OnnxRecord,
        format=FORMAT,
        version=version("sam2-3dmed"),
        model_sha256=checksum([run / MODEL_FILE]),
        run_sha256=record.sha256(),
        opset=OPSET,
        image_size=image_size,
        classes={str(value): name for value, name in record.plan.labels.items()},
        checked_on=source,
        tolerance=tolerance,
    )


def _prepare_folder(run: Path, folder: Path) -> None:
    config = folder / CONFIG_FILE
    if config.is_file() and config.read_bytes() != (run / CONFIG_FILE).read_bytes():
        raise DataError(f"{folder}: holds another run or its export; choose an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from None


def _write(path: Path, model: bytes, found: Differences, make_record: Callable[..., OnnxRecord]) -> float:
    record = make_record(max_abs_difference=dict(found.absolute), max_rel_difference=dict(found.relative))
    found.require(record.tolerance, path.name)
    try:
        with replacing(path) as file:
            file.write(with_record(model, record))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    difference = max(found.relative.values())
    logger.info("%s: differs from PyTorch by at most %.1e, relatively, on %s", path.name, difference, record.checked_on)
    return difference
