"""The command `sam2-3dmed baselines setup`."""

import typer

from sam2_3dmed.cli.options import examples
from sam2_3dmed.errors import ConfigError

commands = typer.Typer()
baselines = typer.Typer(help="Prepare the systems that ours is compared with.", no_args_is_help=True)
commands.add_typer(baselines, name="baselines")


@baselines.command(epilog=examples("sam2-3dmed baselines setup nnunet"))
def setup(system: str = typer.Argument(help="nnunet: the only one that needs an environment of its own.")) -> None:
    """Make an environment for a system with packages that ours cannot have; takes minutes and gigabytes."""
    from sam2_3dmed.baselines.nnunet.environment import installed_versions, set_up

    if system != "nnunet":
        raise ConfigError(f"{system} needs no environment; the only system that does is nnunet")
    folder = set_up()
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    typer.echo(f"{folder}: {versions}")
