"""Export of a run folder as ONNX files that are checked against PyTorch."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.export.check import TOLERANCE, Differences, check_encoder, check_slab, check_slices
from sam2_3dmed.export.graph import OPSET, encoder_onnx, slab_onnx, with_record
from sam2_3dmed.inference.manifest import checksum
from sam2_3dmed.inference.onnx_network import FORMAT, OnnxRecord, require_onnx
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.processes.atomic import make_folder, naming, replacing, write_text
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
        folder: New, empty, of an earlier export, or the run's own.
        check: Volume to check on, instead of a case of the run's data set or a phantom.
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
    network, depth = predictor.network, predictor.slab_slices
    for length in lengths:
        if not 1 <= length < depth:
            raise ConfigError(f"--length {length}: expected 1 to {depth - 1}, since the run's slabs have {depth}")
    config = folder / CONFIG_FILE
    if config.is_file() and config.read_bytes() != (run / CONFIG_FILE).read_bytes():
        raise DataError(f"{folder}: holds another run or its export; choose an empty folder")
    make_folder(folder)
    source, slices = check_slices(run, check, predictor.preprocessing, depth)
    of_export = {
        "format": FORMAT,
        "version": version("sam2-3dmed"),
        "model_sha256": checksum([run / MODEL_FILE]),
        "run_sha256": record.sha256(),
        "opset": OPSET,
        "image_size": network.encoder.image_size,
        "classes": {str(value): name for value, name in record.plan.labels.items()},
        "checked_on": source,
        "tolerance": tolerance,
    }
    network.eval()
    model = encoder_onnx(network.encoder, len(record.plan.channels))
    found = check_encoder(model, network, slices[:depth])
    written = dict([_write(folder, model, found, part="encoder", slab_slices=None, **of_export)])
    for length in sorted({depth, *lengths}):
        model = slab_onnx(network, length)
        found = check_slab(model, network, slices, length)
        written |= [_write(folder, model, found, part="slab", slab_slices=length, **of_export)]
    if folder.resolve() != run.resolve():
        write_text(config, (run / CONFIG_FILE).read_text(encoding="utf-8"))
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


def _write(folder: Path, model: bytes, found: Differences, **fields: Any) -> tuple[Path, float]:
    """Write a file with its record. Returns: the file and its largest relative difference."""
    record = OnnxRecord(
        outputs=tuple(found.absolute), max_abs_difference=found.absolute, max_rel_difference=found.relative, **fields
    )
    path = folder / record.file_name
    found.require(record.tolerance, path.name)
    with naming(path, "cannot be written"), replacing(path) as file:
        file.write(with_record(model, record))
    difference = max(found.relative.values())
    logger.info("%s: differs from PyTorch by at most %.1e, relatively, on %s", path.name, difference, record.checked_on)
    return path, difference
