"""The commands that use a trained model: `predict` and `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam2_3dmed.cli.options import end_with, examples

if TYPE_CHECKING:
    from sam2_3dmed.inference.batch import Outcome

commands = typer.Typer(rich_markup_mode="rich")

# Options of several lines stand here, so that the command itself stays readable.
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(help="NIfTI files or folders of them; DICOM folders (one study, or trees of them), zips or files."),
]
ListFile = Annotated[
    Path | None, typer.Option("--list", help="Also the paths in this file: one a line, or CSV's column input.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change an inference option of the run, inference.key=value; may be repeated."),
]
Format = Annotated[str, typer.Option("--format", help="nifti, nrrd (for 3D Slicer), dicom-seg or rtstruct.")]
Codes = Annotated[
    Path | None,
    typer.Option(help='dataset.json whose "codes" give classes their DICOM codes; without it the run\'s codes.json.'),
]
BoxesFrom = Annotated[
    Path | None,
    typer.Option("--boxes-from", help="Masks to draw boxes around, for nano, a run of pretrain or of model.box_every."),
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Also OUT/probabilities/NAME_CLASS.nii.gz for every class.")
]
SaveAuxiliary = Annotated[
    bool, typer.Option("--save-auxiliary", help="Also boundary maps and relative positions, in OUT/auxiliary.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Predict all inputs; without it, finished ones are passed over.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:0,cuda:1 (a worker each) ...; without it a GPU if there is one.")
]
Backend = Annotated[
    str, typer.Option(help="pytorch, or onnxruntime: it runs what `export` wrote, on the CPU and in slabs.")
]
Cluster = Annotated[str | None, typer.Option(help="ray or slurm: other machines, which see the same folders.")]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="An option of submitit: slurm_partition=gpu, timeout_min=240; may be repeated."),
]


@commands.command(
    epilog=examples(
        "sam2-3dmed predict ct.nii.gz -o masks --model runs/spleen",
        "sam2-3dmed predict imagesTs -o masks --model runs/spleen --set inference.direction=forward --workers 4",
        "sam2-3dmed predict --list scans.csv -o masks --model runs/spleen --device cuda:0,cuda:1",
        "sam2-3dmed predict studies -o masks --model runs/spleen --format dicom-seg",
        "sam2-3dmed predict imagesTs -o masks --model runs/spleen --cluster slurm --workers 8 --slurm gpus_per_node=1",
    )
)
def predict(
    *,
    inputs: Inputs = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Run folder of a trained model, or nano, with boxes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks, each NAME.nii.gz or as --format.")],
    list_file: ListFile = None,
    settings: Settings = None,
    mask_format: Format = "nifti",
    codes: Codes = None,
    series: Annotated[str | None, typer.Option(help="UID of the DICOM series, where an input has several.")] = None,
    boxes_from: BoxesFrom = None,
    probabilities: Probabilities = False,
    save_auxiliary: SaveAuxiliary = False,
    overwrite: Overwrite = False,
    device: Device = None,
    backend: Backend = "pytorch",
    workers: Annotated[int | None, typer.Option(help="Processes of this machine, or of --cluster.", min=1)] = None,
    cluster: Cluster = None,
    slurm: Slurm = None,
) -> None:
    """Segment volumes; each mask lies on the grid of its input. A volume that fails does not stop the others."""
    from sam2_3dmed.inference.inputs import read_list
    from sam2_3dmed.processes.map_cases import progress_bar
    from sam2_3dmed.processes.slurm import parse_options
    from sam2_3dmed.run.predict import PredictRequest
    from sam2_3dmed.run.predict import predict as run

    with progress_bar("Predicting") as progress:
        request = PredictRequest(
            model,
            [*(inputs or []), *(read_list(list_file) if list_file else [])],
            out=out,
            settings=settings or [],
            format=mask_format,
            codes=codes,
            series=series,
            boxes_from=boxes_from,
            probabilities=probabilities,
            save_auxiliary=save_auxiliary,
            overwrite=overwrite,
            device=device,
            backend=backend,
            workers=workers,
            cluster=cluster,
            slurm=parse_options(slurm or []),
            progress=progress,
        )
        outcomes = run(request)
    _report(outcomes, out)


def _report(outcomes: "list[Outcome]", out: Path) -> None:
    """Print how many masks there are, and exit with status 1 if an input failed."""
    failures = {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    earlier = sum(outcome.earlier for outcome in outcomes)
    before = f", {earlier} of them by an earlier run" if earlier else ""
    typer.echo(f"{len(outcomes) - len(failures)} of {len(outcomes)} masks written to {out}{before}")
    end_with(failures)


@commands.command(
    epilog=examples(
        "sam2-3dmed export --model runs/spleen -o spleen-onnx",
        "sam2-3dmed export --model runs/spleen -o spleen-onnx --check ct.nii.gz --length 3 --length 2",
        "sam2-3dmed predict ct.nii.gz -o masks --model spleen-onnx --backend onnxruntime",
    )
)
def export(
    model: Annotated[Path, typer.Option("--model", "-m", help="Run folder of a trained model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files, new or empty; the run's own, too.")],
    check: Annotated[
        Path | None,
        typer.Option(help="Volume to compare with PyTorch on; without it one of the run's data set, else a phantom."),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(help="Also slabs of so many slices, for volumes shorter than the run's; may be repeated."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference from PyTorch, as a share of an output's largest value.", min=0)
    ] = 1e-3,
) -> None:
    """Write the encoder and the loop over a slab as ONNX files, each checked against PyTorch on real slices."""
    from sam2_3dmed.export.run import export_run

    for file, difference in export_run(model, out, check=check, lengths=length or [], tolerance=tolerance).items():
        size = file.stat().st_size / 1e6
        typer.echo(f"{file} ({size:.1f} MB): at most {difference:.1e} from PyTorch, relatively")
