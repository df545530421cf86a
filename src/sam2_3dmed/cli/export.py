"""The command `export`."""

from pathlib import Path
from typing import Annotated

import typer

from sam2_3dmed.cli.options import examples

commands = typer.Typer(rich_markup_mode="rich")


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
