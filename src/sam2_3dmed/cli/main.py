"""The command line. Each command imports what it needs only when it is called, so that `--help` is quick."""

import logging
import os
import signal
import sys
from importlib.metadata import EntryPoint, entry_points
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import typer

from sam2_3dmed import __version__
from sam2_3dmed.cli.evaluate import commands as evaluation
from sam2_3dmed.cli.options import Data, end_with, examples
from sam2_3dmed.cli.predict import commands as inference
from sam2_3dmed.cli.train import commands as training
from sam2_3dmed.errors import ConfigError, DataError, UserError
from sam2_3dmed.processes.signals import EXIT_STATUS, Terminated, never_lost

GROUP = "sam2_3dmed.commands"
"""Entry points of this group are `typer.Typer` objects, whose commands stand beside ours. An entry point should have
the name of its command, which then reports that the package cannot be imported."""

_INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a shell."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sam2-3dmed {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """SAM2-3dMed: SAM2 as a prompt-free segmenter of 3D medical volumes. Not for clinical use."""


@app.command(
    epilog=examples("sam2-3dmed fingerprint Task09_Spleen", "sam2-3dmed fingerprint Task09_Spleen --out plan.yaml")
)
def fingerprint(
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the proposed plan here, as YAML.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read cases.", min=0)] = None,
) -> None:
    """Read and check every case once; show spacing, sizes, intensities and labels; propose the plan."""
    from rich.console import Console

    from sam2_3dmed.config import SplitConfig
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.fingerprint import describe
    from sam2_3dmed.data.fingerprint import fingerprint as take
    from sam2_3dmed.data.plan import plan_yaml, propose_plan, write_plan_yaml
    from sam2_3dmed.data.splits import split_cases
    from sam2_3dmed.processes.map_cases import progress_bar

    dataset = read_dataset(data)
    with progress_bar("Reading cases") as progress:
        found = take(dataset, workers=workers, progress=progress)
    try:  # the plan comes from the cases that `train` would train on, so that nothing leaks from the others
        names = split_cases(dataset.names, SplitConfig(), foreground=found.with_foreground).train
    except DataError:  # too few cases for a split
        names = dataset.names
    plan = propose_plan(found, names)
    console = Console()
    console.print(describe(found, plan.slicing_axis))
    if out is None:
        console.print(f"\nProposed plan, from {len(names)} cases, the training cases of the default split:\n")
        typer.echo(plan_yaml(plan))
    else:
        write_plan_yaml(plan, out)
        console.print(f"Plan written to {out}; edit it and give it to train with --plan.")


@app.command(
    epilog=examples(
        "sam2-3dmed prepare studies -o Task91_Sarcoma",
        "sam2-3dmed prepare studies.zip -o Task91_Sarcoma --labels GTV_Mass=1 --labels Edema=2",
    )
)
def prepare(
    studies: Annotated[Path, typer.Argument(help="Folder (of any depth) or zip of DICOM images with SEG or RTSTRUCT.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the data set; new or empty.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of a segment or region; may be repeated; without it all, by name."),
    ] = None,
) -> None:
    """Make a data set that `train` reads from DICOM studies: images, labels, dataset.json."""
    from sam2_3dmed.dicom.prepare import parse_labels
    from sam2_3dmed.dicom.prepare import prepare as make
    from sam2_3dmed.processes.map_cases import progress_bar

    chosen = parse_labels(labels or [])
    with progress_bar("Preparing") as progress:
        cases, failures = make(studies, out, chosen, progress)
    typer.echo(f"{len(cases)} cases in {out}")
    end_with(failures)


@app.command(
    epilog=examples(
        "sam2-3dmed sparse Task09_Spleen -o Task09_Spleen_every_fifth --every 5",
        "sam2-3dmed sparse Task09_Spleen -o Task09_Spleen_drawn --drawn",
        "sam2-3dmed sparse Task09_Spleen -o Task09_Spleen_listed --slices labelled.csv",
    )
)
def sparse(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the data set; new or empty.")],
    every: Annotated[int | None, typer.Option(help="Every so many slices are labelled.", min=1)] = None,
    slices: Annotated[
        Path | None, typer.Option(help="CSV with the columns case and slice (from 0): these are labelled.")
    ] = None,
    drawn: Annotated[bool, typer.Option("--drawn", help="Slices with any class are labelled, and no others.")] = False,
    axis: Annotated[
        Literal["axial", "coronal", "sagittal"], typer.Option(help="The direction of the slices.")
    ] = "axial",
) -> None:
    """Say that only some slices are labelled: a data set whose labels have the ignore label on all others."""
    from sam2_3dmed.data.sparse import make_sparse, parse_selection
    from sam2_3dmed.processes.map_cases import progress_bar

    chosen = parse_selection(every, slices, drawn, axis)
    with progress_bar("Writing cases") as progress:
        names = make_sparse(data, out, chosen, progress=progress)
    typer.echo(f"{len(names)} cases in {out}")


def _commands_of(entry: EntryPoint) -> typer.Typer:
    """The commands of another package, or one that gives the reason why there are none."""
    try:
        loaded = entry.load()
        reason = f"{entry.value} is no typer.Typer"
    except Exception as error:  # the module of another package may fail in any way
        loaded, reason = None, f"{entry.value} cannot be imported: {type(error).__name__}: {error}"
    if isinstance(loaded, typer.Typer):
        return loaded
    from rich.markup import escape

    reason, commands = " ".join(reason.split()), typer.Typer()

    @commands.command(
        entry.name, help=escape(reason), context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
    )
    def report() -> None:
        raise ConfigError(f"{entry.name}: {reason}")

    return commands


for _commands in (training, inference, evaluation):
    app.add_typer(_commands)
for _entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
    app.add_typer(_commands_of(_entry))


def main() -> None:
    """Run the command line; what the user got wrong is a line on standard error and exit status 2."""
    # Read when torch loads GNU OpenMP: its threads wait for each other awake, so long that beside other busy processes
    # a training step takes ten times as long as alone. With fewer rounds it takes twice as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8; stderr does so anyway
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("sam2_3dmed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with never_lost():
            app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # what the system says about a path, such as a name that is too long
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        typer.echo(f"Error: {where}{error.strerror or error}", err=True)
        sys.exit(2)
    except MemoryError:
        typer.echo("Error: there is not enough memory", err=True)
        sys.exit(2)
    except Terminated:
        typer.echo("Terminated; train --resume goes on from the last checkpoint.", err=True)
        sys.exit(EXIT_STATUS)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != _INTERRUPTED:  # typer has made an exit of it
            raise
        typer.echo("Interrupted; train --resume, predict and reproduce go on from what is whole.", err=True)
        sys.exit(_INTERRUPTED)
    finally:
        logger.removeHandler(handler)
