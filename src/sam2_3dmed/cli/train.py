"""The commands `train` and `find-rate`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sam2_3dmed.cli.options import Data, Settings, Weights, examples
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import OURS, system_names

commands = typer.Typer(rich_markup_mode="rich")

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; without it runs/NAME of the data.")]
Recipe = Annotated[
    str, typer.Option(help="auto, paper or scratch, with +change if wanted (paper+without_srpp), or a YAML file.")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="Plan YAML from `fingerprint`, not the proposed one.")]
Fold = Annotated[str | None, typer.Option(help="i/n: fold i of n is the test set, instead of the 20%.")]
Minutes = Annotated[
    float | None, typer.Option(help="As many epochs as fit into this time, measured at the start.", min=0.1)
]
GpuMemory = Annotated[
    float | None, typer.Option(help="GB that a GPU has: choose how a step is taken so that it fits.", min=0.1)
]
Devices = Annotated[
    int | None, typer.Option(help="GPUs of a machine (or processes, without GPUs) that share each batch.", min=1)
]


@commands.command(
    epilog=examples(
        "sam2-3dmed train Task09_Spleen --out runs/spleen --test",
        "sam2-3dmed train Task09_Spleen --weights sam2.1_hiera_tiny.pt --recipe paper",
        "sam2-3dmed train Task09_Spleen --weights nano --minutes 30",
        "sam2-3dmed train Task09_Spleen --weights none --minutes 30 --set model.size=nano",
        "sam2-3dmed train Task09_Spleen --set training.epochs=50 --set 'training.loggers=[tensorboard, wandb]'",
        "sam2-3dmed train Task09_Spleen --out runs/spleen --resume",
        "sam2-3dmed train Task09_Spleen --gpu-memory 8 --devices 2",
        "sam2-3dmed train Task09_Spleen --system mednext_s --minutes 60",
    )
)
def train(
    data: Data,
    out: Out = None,
    recipe: Recipe = "auto",
    weights: Weights = "auto",
    plan: PlanFile = None,
    fold: Fold = None,
    settings: Settings = None,
    minutes: Minutes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, as it began.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Predict and evaluate the test set when training ends.")] = False,
    gpu_memory: GpuMemory = None,
    devices: Devices = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Folder of scans without labels; see training.unlabelled_fraction.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines, on which torchrun or srun starts this.", min=1)] = None,
    system: Annotated[str, typer.Option("--system", help=f"{', '.join(system_names())}.")] = OURS,
) -> None:
    """Fine-tune on a folder of labelled volumes; leaves a run folder that predict, report and compare read."""
    given = {
        "--recipe": recipe != "auto",
        "--weights": weights != "auto",
        "--plan": plan,
        "--fold": fold,
        "--set": settings,
        "--minutes": minutes,
        "--gpu-memory": gpu_memory,
        "--system": system != OURS,
    }
    _refuse_with_resume(resume, given)
    budget = [] if minutes is None else [f"training.minutes={minutes}"]
    options = _options(system, recipe, weights, plan, fold, [*(settings or []), *budget])
    _keep_processes_quiet(devices)

    from sam2_3dmed.evaluation.cases import summary_table
    from sam2_3dmed.run.train import TrainRequest, test_run
    from sam2_3dmed.run.train import train as train_run

    options |= {"resume": resume, "gpu_memory": gpu_memory, "devices": devices, "nodes": nodes}
    folder = train_run(TrainRequest(data, out, unlabelled=unlabelled, **options))
    if folder is None:  # another process prints for this run
        return
    typer.echo(f"Model: {folder}")
    if test:
        typer.echo(summary_table(test_run(folder, data).summary()))


@commands.command(
    epilog=examples(
        "sam2-3dmed pretrain --out runs/pretrained --minutes 120",
        "sam2-3dmed pretrain --out runs/pretrained --resume",
        "sam2-3dmed train Task09_Spleen --weights runs/pretrained",
    )
)
def pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")],
    recipe: Annotated[str, typer.Option(help="pretrain, with +change if wanted, or a YAML file.")] = "pretrain",
    weights: Annotated[str, typer.Option(help="none, or what `train` takes.")] = "none",
    settings: Settings = None,
    minutes: Minutes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, as it began.")] = False,
    devices: Devices = None,
) -> None:
    """Train a promptable network on made-up anatomy, without any data; `train --weights RUN` starts from it."""
    given = {"--recipe": recipe != "pretrain", "--weights": weights != "none", "--set": settings, "--minutes": minutes}
    _refuse_with_resume(resume, given)
    from sam2_3dmed.config import read_recipe, with_settings

    budget = [] if minutes is None else [f"training.minutes={minutes}"]
    chosen = with_settings(read_recipe(recipe, from_scratch=weights == "none"), [*(settings or []), *budget])
    _keep_processes_quiet(devices)

    from sam2_3dmed.run.pretrain import PretrainRequest
    from sam2_3dmed.run.pretrain import pretrain as run

    if (folder := run(PretrainRequest(out, chosen, weights, resume, devices))) is not None:
        typer.echo(f"Model: {folder}")


@commands.command(epilog=examples("sam2-3dmed find-rate Task09_Spleen --weights none --out runs/spleen"))
def find_rate(
    data: Data,
    out: Out = None,
    recipe: Recipe = "auto",
    weights: Weights = "auto",
    plan: PlanFile = None,
    fold: Fold = None,
    settings: Settings = None,
) -> None:
    """Try a hundred learning rates, a step each, and suggest one to begin training with; takes minutes."""
    options = _options(OURS, recipe, weights, plan, fold, settings or [])

    from sam2_3dmed.run.train import TrainRequest, find_learning_rate

    rate, present, folder = find_learning_rate(TrainRequest(data, out, **options))
    typer.echo(f"{folder / 'learning_rates.png'} shows how the loss answers to each; the recipe has ", nl=False)
    typer.echo(f"{present:g}, and the suggestion is:\n--set training.learning_rate={rate:.1e}")


def _keep_processes_quiet(devices: int | None) -> None:
    """Otherwise every process of several logs that some weights take no part. torch reads this when it is imported."""
    if (devices or 1) > 1 or {"LOCAL_RANK", "SLURM_LOCALID"} & os.environ.keys():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _refuse_with_resume(resume: bool, given: Mapping[str, object]) -> None:
    """Raise ConfigError if a run is resumed with options, by name, that only a new one takes."""
    ignored = ", ".join(option for option, value in given.items() if value)
    if resume and ignored:
        raise ConfigError(f"--resume goes on as the run began; it takes no {ignored}")


def _options(
    system: str, recipe: str, weights: str, plan: Path | None, fold: str | None, settings: list[str]
) -> dict[str, Any]:
    """Fields of a TrainRequest; mistakes are found before the imports that take seconds."""
    from sam2_3dmed.run.first_weights import recipe_for_weights
    from sam2_3dmed.run.systems import find_system

    recipe_for_weights(find_system(system), weights, recipe, settings)
    options = {"system": system, "recipe": recipe, "settings": settings, "weights": weights}
    return options | {"plan": plan, "fold": _fold(fold)}


def _fold(text: str | None) -> tuple[int, int] | None:
    """`i/n` as numbers, 1 <= i <= n."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text) and 1 <= int(number) <= int(count)):
        raise ConfigError(f"--fold {text[:80]}: expected i/n with i from 1 to n, such as 1/5")
    return int(number), int(count)
