"""Options and texts that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Argument(help="MSD or nnU-Net folder, or a folder with images/ and labels/.")]
Weights = Annotated[
    str,
    typer.Option(
        help="auto (SAM2.1 tiny from the hub, else none), hub id, HF folder, Meta .pt, nano (in the package), none, "
        "or a run of ours."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One option of the recipe, section.key=value; may be repeated.")
]


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "[b]Examples[/b]\n\n" + "\n\n".join(lines)


def end_with(failures: dict[str, str]) -> None:
    """Exit with status 1 and the list of failures, if there are any."""
    if failures:
        typer.echo(f"{len(failures)} failed:", err=True)
        for name, error in failures.items():
            typer.echo(f"  {name}: {error}", err=True)
        raise typer.Exit(1)
