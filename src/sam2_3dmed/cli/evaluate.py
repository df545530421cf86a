"""The commands `evaluate`, `compare` and `report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sam2_3dmed.cli.options import end_with, examples

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(
    epilog=examples(
        "sam2-3dmed evaluate masks labelsTs -o scores",
        "sam2-3dmed evaluate masks labelsTs -o scores --labels dataset.json --tolerance 3 --tolerance 1",
        "sam2-3dmed evaluate pairs.csv -o scores --surface voxel --empty nan",
    )
)
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of masks, one file, or a CSV file with the columns prediction and label.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for cases.csv, cases.json and summary.json.")],
    truth: Annotated[
        Path | None,
        typer.Argument(metavar="[LABELS]", help="Folder of label files of the same names, or one file; not with CSV."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="dataset.json that names the classes.")] = None,
    tolerance: Annotated[
        list[float] | None, typer.Option(help="NSD tolerance in mm; may be repeated; default: 2 and 1.")
    ] = None,
    surface: Annotated[
        Literal["surfel", "voxel"], typer.Option(help="Surface by area (surface-distance) or by voxels (MONAI).")
    ] = "surfel",
    empty: Annotated[
        Literal["penalise", "nan"], typer.Option(help="The cost of a class that is missing in a mask.")
    ] = "penalise",
    paper_style: Annotated[
        bool, typer.Option("--paper-style", help="Also paper_style.csv: per slice and volume, in mm and voxels.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: by the size of the files.", min=0)] = None,
) -> None:
    """Score masks against labels per class and case, in 3D and mm: overlap, surface distance, volume, lesions."""
    from sam2_3dmed.evaluation.cases import evaluate_folders, summary_table
    from sam2_3dmed.evaluation.metrics import DEFAULT_TOLERANCES_MM
    from sam2_3dmed.processes.map_cases import progress_bar

    with progress_bar("Scoring") as progress:
        result = evaluate_folders(
            predictions,
            truth,
            labels,
            tolerance or DEFAULT_TOLERANCES_MM,
            surface=surface,
            empty=empty,
            with_paper_style=paper_style,
            workers=workers,
            progress=progress,
        )
    result.write(out)
    typer.echo(summary_table(result.summary()))
    typer.echo(f"Written to {out}")


@commands.command(
    epilog=examples(
        "sam2-3dmed compare runs/paper runs/without_srpp -o comparison",
        "sam2-3dmed compare runs/* --baseline paper --metric dice --metric nsd_2mm",
    )
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_EVALUATION...", help="Run folders, or folders that `evaluate` wrote."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables as Markdown, CSV and LaTeX.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Column of cases.csv; may be repeated; default: all.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The run that the others are compared with; default: the first.")
    ] = None,
) -> None:
    """Compare runs on the same cases: paired differences, Wilcoxon and Holm, ranks and how stable they are."""
    from sam2_3dmed.evaluation.compare import compare_runs, markdown, write_comparison

    comparison = compare_runs(runs, metric, baseline)
    if out is not None:
        write_comparison(comparison, out)
    typer.echo(markdown(comparison), nl=False)
    if out is not None:
        typer.echo(f"\nWritten to {out}")


@commands.command(
    epilog=examples(
        "sam2-3dmed report runs/spleen",
        "sam2-3dmed report runs/spleen --data Task09_Spleen -o spleen.html",
    )
)
def report(
    run: Annotated[Path, typer.Argument(help="Run folder whose test cases `train --test` has scored.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set, for images; default: the folder of the training.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; default: RUN/report.html.")] = None,
) -> None:
    """Make one self-contained HTML page of a run: curves, tables, best and worst cases, surfaces in 3D."""
    from sam2_3dmed.report.build import write_report

    path = write_report(run, data, out)
    typer.echo(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB); figures: {run / 'figures'}")


@commands.command(
    epilog=examples(
        "sam2-3dmed suggest runs/spleen more_scans -o suggestions",
        "sam2-3dmed suggest runs/spleen more_scans -o suggestions --slices 5 --data Task09_Spleen",
    )
)
def suggest(
    run: Annotated[Path, typer.Argument(help="Run folder of a model that was trained on what is labelled so far.")],
    scans: Annotated[list[Path], typer.Argument(help="Files and folders of scans without labels.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for suggestions.csv, slices.csv and a page.")],
    slices: Annotated[int, typer.Option(help="Slices of each scan.", min=1)] = 3,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set; default: the folder of the training.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
) -> None:
    """Rank scans, and slices in them, by what a label would teach: where the model is unsure and has seen little."""
    from sam2_3dmed.processes.map_cases import progress_bar
    from sam2_3dmed.report.suggest import suggest as ranked

    with progress_bar("Examining scans") as progress:
        order, failures = ranked(run, scans, out, slices=slices, data=data, device=device, progress=progress)
    for number, scan in enumerate(order[:10], start=1):
        typer.echo(f"{number}. {scan.name}: slices {', '.join(map(str, scan.slices))}")
    typer.echo(f"{out / 'suggestions.html'} shows all {len(order)}")
    end_with(failures)
