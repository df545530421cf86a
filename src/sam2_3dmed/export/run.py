"""`sam2-3dmed export`: from a run folder to a folder of ONNX files that were checked against it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.export.check import TOLERANCE, Differences, check_encoder, check_slab, real_slices
from sam2_3dmed.export.graph import OPSET, SlabGraph, encoder_onnx, slab_onnx, stamped
from sam2_3dmed.inference.manifest import checksum
from sam2_3dmed.inference.onnx_files import ENCODER_FILE, FEATURES, FORMAT, OnnxRecord, require_onnx, slab_file
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.processes.atomic import replacing, write_text
from sam2_3dmed.run.run_config import CONFIG_FILE, Sam2Record, read_sam2_record
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, remember_codes, remembered_codes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written, and its largest relative difference to PyTorch."""

    path: Path
    difference: float


def export_run(
    run: Path,
    folder: Path,
    *,
    check: Path | None = None,
    lengths: Sequence[int] = (),
    tolerance: float = TOLERANCE,
) -> list[ExportedFile]:
    """Write encoder.onnx, slab_D.onnx and config.yaml; each ONNX file only after it was checked.

    check: a volume to check on; without it one of the run's data set, else a phantom. lengths: of further slabs, each
    a file, for volumes that are shorter than D. tolerance: of the relative difference. folder: new, empty, or of an
    earlier export; the run's own, too.

    Raises:
        UserError: no finished run, the extra is missing, the folder holds another run, or a file is not equal enough.
    """
    require_onnx("onnx", "onnxruntime")
    record = read_sam2_record(run, "export")
    if record.model.memory != "recent":
        raise ConfigError(f"{run}: model.memory {record.model.memory} draws random numbers and cannot become ONNX")
    if record.model.box_every:
        raise ConfigError(f"{run}: takes boxes (model.box_every), for which an exported file has no input")
    predictor = cast(Predictor, load_model(run, device="cpu"))
    network = predictor.network
    depth = predictor.passes.slab_slices
    for length in lengths:
        if not 1 <= length < depth:
            raise ConfigError(f"--length {length}: expected 1 to {depth - 1}, since the run's slabs have {depth}")
    _make_room(run, folder)
    real = real_slices(run, check, predictor.preprocessing, depth)
    about = _about(run, record, real.source, tolerance)
    network.eval()
    model = encoder_onnx(network.encoder, len(record.plan.channels))
    found = check_encoder(model, network, real.slices[:depth])
    of_encoder = partial(about, part="encoder", slab_slices=None, outputs=FEATURES)
    written = [_write(folder / ENCODER_FILE, model, found, of_encoder)]
    for length in sorted({depth, *lengths}):
        model, outputs = slab_onnx(network, length), SlabGraph(network).outputs
        found = check_slab(model, network, real.slices, length, outputs)
        of_slab = partial(about, part="slab", slab_slices=length, outputs=outputs)
        written.append(_write(folder / slab_file(length), model, found, of_slab))
    if folder.resolve() != run.resolve():
        write_text(folder / CONFIG_FILE, (run / CONFIG_FILE).read_text(encoding="utf-8"))
        remember_codes(folder, remembered_codes(run))
    return written


def _about(run: Path, record: Sam2Record, source: str, tolerance: float) -> Callable[..., OnnxRecord]:
    """What all files of an export say of themselves."""
    return partial(
        OnnxRecord,
        format=FORMAT,
        version=version("sam2-3dmed"),
        model_sha256=checksum([run / MODEL_FILE]),
        run_sha256=record.sha256(),
        opset=OPSET,
        image_size=record.model.image_size,
        classes={str(value): name for value, name in record.plan.labels.items()},
        checked_on=source,
        tolerance=tolerance,
    )


def _make_room(run: Path, folder: Path) -> None:
    """Make the folder.

    Raises:
        DataError: it cannot be made, or holds another run.
    """
    config = folder / CONFIG_FILE
    if config.is_file() and config.read_bytes() != (run / CONFIG_FILE).read_bytes():
        raise DataError(f"{folder}: holds another run or its export; choose an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from None


def _write(path: Path, model: bytes, found: Differences, about: Callable[..., OnnxRecord]) -> ExportedFile:
    """Write a model with what is known of it.

    Raises:
        WeightsError: it differs too much from PyTorch. DataError: it cannot be written.
    """
    record = about(max_abs_difference=dict(found.absolute), max_rel_difference=dict(found.relative))
    found.require(record.tolerance, path.name)
    try:
        with replacing(path) as file:
            file.write(stamped(model, record))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    difference = max(found.relative.values())
    logger.info("%s: differs from PyTorch by at most %.1e, relatively, on %s", path.name, difference, record.checked_on)
    return ExportedFile(path, difference)
