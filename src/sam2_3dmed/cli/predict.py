"""The command that segments volumes; `cli` puts it beside the others."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam2_3dmed.cli.options import end_with, examples
from sam2_3dmed.errors import ConfigError

if TYPE_CHECKING:
    from sam2_3dmed.inference.inputs import Input
    from sam2_3dmed.inference.job import Job, Runner

commands = typer.Typer(rich_markup_mode="rich")

# An option a line, so that the command itself stays readable.
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(help="NIfTI files or folders of them; DICOM folders (one study, or trees of them), zips or files."),
]
ListFile = Annotated[
    Path | None, typer.Option("--list", help="Also the paths in this file: one a line, or CSV's column input.")
]
Model = Annotated[Path, typer.Option("--model", "-m", help="Run folder of a trained model.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks, each NAME.nii.gz or as --format.")]
Direction = Annotated[str | None, typer.Option(help="forward, backward or both; without it the run's.")]
Mode = Annotated[str | None, typer.Option(help="slabs or stream: one pass through all slices; else the run's.")]
Flips = Annotated[
    bool | None, typer.Option("--flips/--no-flips", help="Average with the mirrored slices', at twice the time.")
]
Shifts = Annotated[
    bool | None, typer.Option("--shifts/--no-shifts", help="Average over four small shifts; twice the time of --flips.")
]
Bf16 = Annotated[
    bool | None, typer.Option("--bf16/--fp32", help="Without either: bf16 where GPU or processor is fast at it.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network first; minutes, which cohorts win back.")]
Overlap = Annotated[float | None, typer.Option(help="Share of a slab the next one repeats.", min=0, max=0.95)]
LargestComponent = Annotated[
    bool | None, typer.Option("--largest-component/--all-components", help="Keep each class's largest piece only.")
]
MinVolume = Annotated[
    list[str] | None,
    typer.Option("--min-volume-ml", help="Drop smaller pieces: ML for all classes, or CLASS=ML; may be repeated."),
]
FillHoles = Annotated[
    bool | None, typer.Option("--fill-holes/--leave-holes", help="Fill what a class encloses with that class.")
]
BatchSize = Annotated[int | None, typer.Option(help="Slabs at once; without it as many as memory allows.", min=1)]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Also OUT/probabilities/NAME_CLASS.nii.gz for every class.")
]
SaveAuxiliary = Annotated[
    bool, typer.Option("--save-auxiliary", help="Also boundary maps and relative positions, in OUT/auxiliary.")
]
Format = Annotated[str, typer.Option("--format", help="nifti, nrrd (for 3D Slicer), dicom-seg or rtstruct.")]
Codes = Annotated[
    Path | None,
    typer.Option(help='dataset.json whose "codes" give classes their DICOM codes; without it the run\'s codes.json.'),
]
Series = Annotated[str | None, typer.Option(help="UID of the DICOM series, where an input has several.")]
BoxesFrom = Annotated[
    Path | None,
    typer.Option("--boxes-from", help="Masks to draw boxes around, for a model trained with model.box_every."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Predict all; without it what is finished and whole is passed over.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:0,cuda:1 (a worker each) ...; without it a GPU if there is one.")
]
Backend = Annotated[
    str | None,
    typer.Option(help="onnxruntime runs what `export` wrote, on the CPU and in slabs; without it PyTorch."),
]
Workers = Annotated[int | None, typer.Option(help="Processes of this machine, or of --cluster.", min=1)]
Cluster = Annotated[str | None, typer.Option(help="ray or slurm: other machines, that see the same folders.")]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="An option of submitit: slurm_partition=gpu, timeout_min=240; may be repeated."),
]

# These change how long it takes, not what comes out.
_WITHOUT_EFFECT = {"batch_size", "compile"}


@commands.command(
    epilog=examples(
        "sam2-3dmed predict ct.nii.gz -o masks --model runs/spleen",
        "sam2-3dmed predict imagesTs -o masks --model runs/spleen --direction forward --workers 4",
        "sam2-3dmed predict --list scans.csv -o masks --model runs/spleen --device cuda:0,cuda:1",
        "sam2-3dmed predict studies -o masks --model runs/spleen --format dicom-seg",
        "sam2-3dmed predict imagesTs -o masks --model runs/spleen --cluster slurm --workers 8 --slurm gpus_per_node=1",
    )
)
def predict(
    *,
    inputs: Inputs = None,
    model: Model,
    out: Out,
    list_file: ListFile = None,
    mode: Mode = None,
    direction: Direction = None,
    overlap: Overlap = None,
    batch_size: BatchSize = None,
    flips: Flips = None,
    shifts: Shifts = None,
    bf16: Bf16 = None,
    compile_network: Compile = False,
    largest_component: LargestComponent = None,
    min_volume_ml: MinVolume = None,
    fill_holes: FillHoles = None,
    probabilities: Probabilities = False,
    save_auxiliary: SaveAuxiliary = False,
    mask_format: Format = "nifti",
    codes: Codes = None,
    series: Series = None,
    boxes_from: BoxesFrom = None,
    overwrite: Overwrite = False,
    device: Device = None,
    backend: Backend = None,
    workers: Workers = None,
    cluster: Cluster = None,
    slurm: Slurm = None,
) -> None:
    """Segment volumes; each mask lies on the grid of its input. One that fails costs only itself."""
    if direction not in (None, "forward", "backward", "both"):
        raise ConfigError(f"--direction {direction}: expected forward, backward or both")
    if mode not in (None, "slabs", "stream"):
        raise ConfigError(f"--mode {mode}: expected slabs or stream")
    runner = _runner(cluster, workers, device, slurm or [])
    given: dict[str, Any] = {"direction": direction, "overlap": overlap, "batch_size": batch_size, "backend": backend}
    given |= {"mode": mode, "flips": flips, "shifts": shifts, "bf16": bf16, "compile": compile_network or None}
    given |= {"largest_component": largest_component, "fill_holes": fill_holes}
    given |= {"min_volume_ml": _volumes_ml(min_volume_ml or [])}
    options = {key: value for key, value in given.items() if value is not None}
    folders = {"auxiliary": save_auxiliary, "probabilities": probabilities}
    job = _job(model, out, options, mask_format, codes, {name for name, wanted in folders.items() if wanted})
    _run(job, _find(inputs or [], list_file, model, series, boxes_from), runner, overwrite=overwrite)


def _job(
    model: Path, out: Path, options: dict[str, Any], mask_format: str, codes: Path | None, folders: set[str]
) -> "Job":
    """What is done with every input. folders: those of `out` that are wanted besides the masks.

    Raises:
        UserError: no finished run, no such format, or a broken file of codes.
    """
    from sam2_3dmed.dicom.codes import read_codes
    from sam2_3dmed.inference.batch import Results
    from sam2_3dmed.inference.job import Job
    from sam2_3dmed.inference.manifest import Manifest, Provenance, checksum
    from sam2_3dmed.inference.output import MaskFormat, format_name
    from sam2_3dmed.run.run_folder import model_files, read_record, remembered_codes

    record, known = read_record(model), read_codes(codes) if codes else remembered_codes(model)
    if "auxiliary" in folders and not record.has_auxiliary:
        raise ConfigError(f"--save-auxiliary is for SAM2-3dMed, and {model} is {record.about}")
    written = MaskFormat(format_name(mask_format), record.plan.labels, known if mask_format == "dicom-seg" else {})
    told = record.recipe.inference.model_dump(mode="json") | options
    told |= {"format": mask_format, "codes": written.codes, **dict.fromkeys(sorted(folders), True)}
    decisive = {key: value for key, value in told.items() if key not in _WITHOUT_EFFECT}
    provenance = Provenance(str(model), checksum(model_files(model, options.get("backend", "pytorch"))), decisive)
    wanted = {name: out / name for name in folders}
    return Job(model, Results(out, written, manifest=Manifest(out, provenance), **wanted), options)


def _find(
    paths: Sequence[Path], list_file: Path | None, model: Path, series: str | None, boxes_from: Path | None
) -> "list[Input]":
    """The volumes to predict.

    Raises:
        UserError: there are none, one is missing, or two have one name; boxes are missing, or not asked for.
    """
    from sam2_3dmed.inference.inputs import find_inputs, read_list, with_references
    from sam2_3dmed.run.run_folder import read_record

    wanted = [*paths, *(read_list(list_file) if list_file else [])]
    if not wanted:
        raise ConfigError("nothing to predict: give files or folders, or --list")
    record = read_record(model)
    found = find_inputs(wanted, len(record.plan.channels), series)
    if record.takes_boxes != (boxes_from is not None):
        raise ConfigError(
            f"{model} takes boxes ({record.about}): --boxes-from has the masks to draw them around"
            if record.takes_boxes
            else f"--boxes-from is for a model trained with model.box_every, and {model} is {record.about}"
        )
    return found if boxes_from is None else with_references(found, boxes_from)


def _volumes_ml(texts: Sequence[str]) -> float | dict[str, float] | None:
    """`--min-volume-ml` as it was given: a number, or one by class; none if not given.

    Raises:
        ConfigError: not a number, or a number for all beside one for a class.
    """
    volumes: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            volumes[name] = float(number)
        except ValueError:
            raise ConfigError(f"--min-volume-ml {text}: expected ML or CLASS=ML") from None
    if "" in volumes and len(texts) > 1:
        raise ConfigError("--min-volume-ml: one ML for all classes, or CLASS=ML for each, but not both")
    return volumes.get("", volumes or None)


def _runner(cluster: str | None, workers: int | None, device: str | None, slurm: Sequence[str]) -> "Runner":
    """Where and in how many processes the job is done.

    Raises:
        ConfigError: options that do not go together.
    """
    from sam2_3dmed.inference import on_ray, on_slurm
    from sam2_3dmed.inference.workers import assign_devices, in_processes, in_this_process
    from sam2_3dmed.processes.slurm import parse_options

    if cluster not in (None, "ray", "slurm"):
        raise ConfigError(f"--cluster {cluster}: expected ray or slurm")
    if slurm and cluster != "slurm":
        raise ConfigError("--slurm is for --cluster slurm")
    if cluster is None:
        devices = assign_devices(device, workers)
        if workers is None and len(devices) == 1:
            return partial(in_this_process, device=device)
        return partial(in_processes, devices=devices)
    if workers is None:
        raise ConfigError(f"--cluster {cluster} needs --workers, the number of its processes")
    if cluster == "ray":
        return partial(on_ray.on_ray, workers=workers, device=device)
    return partial(on_slurm.on_slurm, tasks=workers, device=device, options=parse_options(slurm))


def _run(job: "Job", inputs: "Sequence[Input]", runner: "Runner", *, overwrite: bool) -> None:
    """Do the job, and say what came of it."""
    from sam2_3dmed.inference.job import run_job
    from sam2_3dmed.processes.map_cases import progress_bar

    with progress_bar("Predicting") as progress:
        outcomes = run_job(job, inputs, runner, progress, overwrite=overwrite)
    failures = {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    earlier = sum(outcome.earlier for outcome in outcomes)
    before = f", {earlier} of them by an earlier run" if earlier else ""
    typer.echo(f"{len(outcomes) - len(failures)} of {len(outcomes)} masks written to {job.results.folder}{before}")
    end_with(failures)
