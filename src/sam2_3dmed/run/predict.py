"""One request for prediction, which the command line, Python and a server share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_3dmed.config import with_settings
from sam2_3dmed.dicom.codes import read_codes
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.inference.batch import Job, Outcome, Runner, predict_batch
from sam2_3dmed.inference.inputs import Input, find_inputs, in_memory, require_unique_names, with_references
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.inference.output import MaskFormat
from sam2_3dmed.inference.workers import assign_devices, in_processes, on_ray, on_slurm
from sam2_3dmed.processes.journal import checksum
from sam2_3dmed.processes.lock import locked
from sam2_3dmed.run.run_config import find_run
from sam2_3dmed.run.run_folder import load_model, model_files, read_record, remembered_codes
from sam2_3dmed.run.systems import Backend
from sam2_3dmed.volume.volume import Volume

Source = str | Path | BinaryIO | NDArray[Any] | Volume
Cluster = Literal["ray", "slurm"]

# These change how long a prediction takes, but not its mask.
_WITHOUT_EFFECT = {"batch_size", "compile"}


@dataclass(frozen=True)
class PredictRequest:
    """The volumes to segment, the model, and where the masks go. Most fields are options of `sam2-3dmed predict`."""

    model: str | Path | Segmenter
    """A run folder, `nano` for the promptable network of this package, or a loaded model. A loaded model takes no
    settings, device, backend, workers and cluster."""
    inputs: Sequence[Source]
    """Paths as on the command line, open .nii or .nii.gz files, arrays (X, Y, Z) or (X, Y, Z, C), and volumes.
    Outcomes come in this order, paths first. Inputs without a name are called input_1, input_2, ..."""
    affine: ArrayLike | None = None
    """(4, 4), voxel index -> mm in RAS+, of all arrays among the inputs."""
    spacing_mm: Sequence[float] | None = None
    """The voxel spacing of all arrays, whose axes then run to R, A and S, instead of an affine."""
    out: Path | None = None
    """The folder for the masks and the manifest. None returns the masks in memory."""
    settings: Sequence[str] = ()
    """Changes of the run's inference options, such as "inference.direction=forward"."""
    format: str = "nifti"
    codes: Path | None = None
    series: str | None = None
    boxes_from: Path | None = None
    probabilities: bool = False
    save_auxiliary: bool = False
    overwrite: bool = False
    device: str | None = None
    backend: str = "pytorch"
    workers: int | None = None
    cluster: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """Options of submitit, such as {"slurm_partition": "gpu"}."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with the number of inputs that are done and of all inputs, from any thread."""
    on_slice: Callable[[str, int, int], None] | None = None
    """Called with the name of the input, the number of finished slices and of all slices; not by worker processes."""
    cancel: Event | None = None
    """Set it from another thread to end the prediction."""


def predict(request: PredictRequest) -> list[Outcome]:
    """Segment volumes. A volume that fails has the reason in its outcome.

    With a run folder and an output folder, finished inputs are noted in a manifest and passed over by a later request
    with the same model and options.

    Raises:
        Cancelled: `request.cancel` was set; finished masks stay. UserError: the request cannot be carried out, or
            another process writes into the output folder.
    """
    _check(request)
    runner = _runner(request)
    job, inputs = _job_of_run(request) if isinstance(request.model, str | Path) else _job_of_loaded(request)
    device = request.device.strip() if request.device else None
    with nullcontext() if request.out is None else locked(request.out):
        return predict_batch(
            job,
            inputs,
            runner,
            device=device,
            overwrite=request.overwrite,
            progress=request.progress,
            on_slice=request.on_slice,
            cancel=request.cancel,
        )


def _check(request: PredictRequest) -> None:
    """Raise ConfigError for options that do not go together."""
    if not len(request.inputs):
        raise ConfigError("nothing to predict: give files or folders, or --list")
    for setting in request.settings:
        if not setting.startswith("inference."):
            raise ConfigError(f"--set {setting}: predict changes only inference.*, such as inference.direction=forward")
    if request.cluster not in (None, *get_args(Cluster)):
        raise ConfigError(f"--cluster {request.cluster}: expected {' or '.join(get_args(Cluster))}")
    if request.slurm and request.cluster != "slurm":
        raise ConfigError("--slurm is for --cluster slurm")
    if request.cluster and request.workers is None:
        raise ConfigError(f"--cluster {request.cluster} needs --workers, the number of its processes")
    given: dict[str, Any] = {"workers": request.workers, "cluster": request.cluster}
    if request.out is None:
        given |= {"probabilities": request.probabilities, "format": request.format != "nifti"}
        _refuse(given, "needs an output folder")
    open_files = [source for source in request.inputs if not isinstance(source, str | Path | np.ndarray | Volume)]
    if open_files and request.workers:
        raise ConfigError("open files are read by this process: leave out workers and cluster")
    if not isinstance(request.model, str | Path):
        changes = {"settings": request.settings, "device": request.device, "backend": request.backend != "pytorch"}
        _refuse(given | changes, "is for a run folder, and the model is loaded already")


def _refuse(given: Mapping[str, Any], reason: str) -> None:
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} {reason}")


def _runner(request: PredictRequest) -> Runner | None:
    """The runner of other processes; None for this process."""
    workers, device, cancel = request.workers, request.device, request.cancel
    if request.cluster == "ray":
        return partial(on_ray, workers=workers or 1, device=device, cancel=cancel)
    if request.cluster == "slurm":
        return partial(on_slurm, tasks=workers or 1, device=device, options=request.slurm, cancel=cancel)
    devices = assign_devices(device, workers)
    return None if workers is None and len(devices) == 1 else partial(in_processes, devices=devices, cancel=cancel)


def _job_of_loaded(request: PredictRequest) -> tuple[Job, list[Input]]:
    segmenter = request.model
    assert not isinstance(segmenter, str | Path)
    codes = read_codes(request.codes) if request.codes else {}
    job = _job(request, lambda device: segmenter, segmenter.labels, codes)
    return job, _inputs(request, segmenter.num_channels)


def _job_of_run(request: PredictRequest) -> tuple[Job, list[Input]]:
    name = str(request.model)
    run = find_run(name)
    record = read_record(run)
    if request.save_auxiliary and not record.has_auxiliary:
        raise ConfigError(f"--save-auxiliary is for SAM2-3dMed, and {name} is {record.about}")
    if record.needs_reference != (request.boxes_from is not None):
        raise ConfigError(
            f"{name} takes boxes ({record.about}): --boxes-from has the masks to draw them around"
            if record.needs_reference
            else f"--boxes-from is for a model trained with model.box_every or by pretrain; {name} is {record.about}"
        )
    config = with_settings(record.recipe, request.settings).inference
    codes = read_codes(request.codes) if request.codes else remembered_codes(run)
    backend = cast(Backend, request.backend)
    load = partial(load_model, run, backend=backend, **config.model_dump())
    job = _job(request, load, record.plan.scheme, codes)
    if request.out is not None:
        options = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        named = {name: code._asdict() for name, code in job.mask_format.codes.items()}
        options |= {"format": request.format, "codes": named}
        folders = {"auxiliary": request.save_auxiliary, "probabilities": request.probabilities}
        options |= {name: True for name, wanted in folders.items() if wanted}
        files = checksum(model_files(run, backend))
        manifest = Manifest(request.out, name, files, options, per_host=request.cluster is not None)
        job = replace(job, manifest=manifest)
    return job, _inputs(request, len(record.plan.channels))


def _job(
    request: PredictRequest, load: Callable[..., Segmenter], labels: Mapping[int, str], codes: Mapping[str, Any]
) -> Job:
    mask_format = MaskFormat(request.format, labels, codes if request.format == "dicom-seg" else {})
    return Job(load, request.out, mask_format, request.save_auxiliary, request.probabilities)


def _inputs(request: PredictRequest, num_channels: int) -> list[Input]:
    """The volumes of paths, then the volumes in memory."""
    paths = [Path(source) for source in request.inputs if isinstance(source, str | Path)]
    found = find_inputs(paths, num_channels, request.series) if paths else []
    contents = [source for source in request.inputs if not isinstance(source, str | Path)]
    found += [in_memory(n, content, request.affine, request.spacing_mm) for n, content in enumerate(contents, start=1)]
    require_unique_names(found)
    return found if request.boxes_from is None else with_references(found, request.boxes_from)
