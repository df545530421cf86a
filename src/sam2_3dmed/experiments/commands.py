"""The commands `demo` and `reproduce`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam2_3dmed.cli.options import end_with, examples
from sam2_3dmed.errors import ConfigError

if TYPE_CHECKING:
    from sam2_3dmed.experiments.run_executor import Executor

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(epilog=examples("sam2-3dmed demo", "sam2-3dmed demo --out my-demo --minutes 2"))
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    minutes: Annotated[
        float | None, typer.Option(help="Train this long instead of as long as the full demo.", min=0.1)
    ] = None,
) -> None:
    """Make a phantom data set, train the nano model from scratch on it, predict, evaluate, draw; no download."""
    from sam2_3dmed.experiments.demo import run_demo

    typer.echo(run_demo(out, minutes=minutes))


Tasks = Annotated[
    list[str] | None,
    typer.Option(help="lung, spleen, pancreas, or folders in --data, with commas; without it the table's."),
]
Methods = Annotated[
    list[str] | None, typer.Option(help="Rows to run, of the table or others, with commas; without it all.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Option of that recipe, section.key=value; may be repeated.")
]
PatchSettings = Annotated[
    list[str] | None, typer.Option("--set-patches", help="The same for the systems that learn from patches.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for runs and tables; tables share runs.")]
Cluster = Annotated[str | None, typer.Option(help="ray or slurm: runs are its jobs; without it, one after the other.")]
Slurm = Annotated[list[str] | None, typer.Option(help="With --cluster slurm: KEY=VALUE for submitit; may be repeated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the runs and what they would take; run none.")]


@commands.command(
    epilog=examples(
        "sam2-3dmed reproduce 1 --data MSD --dry-run",
        "sam2-3dmed reproduce 2 --data MSD --tasks lung,spleen --seeds 3",
        "sam2-3dmed reproduce 1 --data MSD --tasks Task04_Hippocampus --weights none --minutes 5",
        "sam2-3dmed reproduce 1 --data MSD --methods full,sam2,mednext_s --epochs 50",
        "sam2-3dmed reproduce 1 --data MSD --cluster slurm --slurm gpus_per_node=1 --slurm timeout_min=2880",
    )
)
def reproduce(
    table: Annotated[int, typer.Argument(help="Of the paper, 1 to 9.", min=1, max=9)],
    data: Annotated[Path, typer.Option(help="Folder of the Decathlon's tasks, or of other data sets, or one of them.")],
    tasks: Tasks = None,
    methods: Methods = None,
    seeds: Annotated[int, typer.Option(help="Runs of each row, of which the mean counts.", min=1)] = 1,
    recipe: Annotated[str, typer.Option(help="That the rows with our network are derived from.")] = "auto",
    weights: Annotated[str, typer.Option(help="That rows with our network start from, as for train.")] = "auto",
    settings: Settings = None,
    patch_settings: PatchSettings = None,
    minutes: Annotated[float | None, typer.Option(help="Of training, for every run.", min=0.1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of every run, instead of its recipe's.", min=1)] = None,
    out: Out = Path("reproduced"),
    cluster: Cluster = None,
    workers: Annotated[int | None, typer.Option(help="With --cluster ray: runs at a time.", min=1)] = None,
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Run a table of the paper again, measured beside reported. It can be stopped and continued at any point."""
    from sam2_3dmed.experiments import reproduce as steps
    from sam2_3dmed.experiments.planning import ReproduceRequest

    execute = _executor(cluster, workers, slurm or [])
    request = ReproduceRequest(
        table=table,
        data=data,
        out=out,
        tasks=_names(tasks),
        methods=_names(methods),
        seeds=seeds,
        recipe=recipe,
        weights=weights,
        settings=tuple(settings or ()),
        patch_settings=tuple(patch_settings or ()),
        minutes=minutes,
        epochs=epochs,
    )
    if dry_run:
        typer.echo(steps.describe(request))
        return
    result = steps.reproduce(request, execute)
    typer.echo(result.text, nl=False)
    typer.echo(f"\nWritten to {result.folder}")
    end_with({str(folder): reason for folder, reason in result.failures})


def _executor(cluster: str | None, workers: int | None, slurm: Sequence[str]) -> "Executor":
    """Raise ConfigError for options that do not go together."""
    from sam2_3dmed.experiments import run_executor
    from sam2_3dmed.processes.slurm import parse_options

    if cluster not in (None, "ray", "slurm"):
        raise ConfigError(f"--cluster {cluster}: expected ray or slurm")
    if slurm and cluster != "slurm":
        raise ConfigError("--slurm is for --cluster slurm")
    if workers is not None and cluster != "ray":
        raise ConfigError("--workers is for --cluster ray")
    if cluster == "slurm":
        return partial(run_executor.run_on_slurm, options=parse_options(slurm))
    if cluster == "ray":
        if workers is None:
            raise ConfigError("--cluster ray needs --workers, the number of runs at a time")
        return partial(run_executor.run_on_ray, workers=workers)
    return run_executor.run_sequentially


def _names(values: list[str] | None) -> tuple[str, ...]:
    """Split the values of a repeated option at commas and spaces."""
    return tuple(name for text in values or () for name in text.replace(",", " ").split())
