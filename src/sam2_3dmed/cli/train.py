"""The commands that train, and that look for the rate to train with; `cli` puts them beside the others."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam2_3dmed.baselines.systems import OURS, SYSTEMS
from sam2_3dmed.cli.evaluate import examples, summary_text
from sam2_3dmed.errors import ConfigError

if TYPE_CHECKING:
    from sam2_3dmed.baselines.recipes import SystemConfig
    from sam2_3dmed.config import RunConfig

commands = typer.Typer(rich_markup_mode="rich")

# An option a line, so that the commands themselves stay readable.
Data = Annotated[Path, typer.Argument(help="MSD or nnU-Net folder, or a folder with images/ and labels/.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; without it runs/NAME of the data.")]
Recipe = Annotated[
    str, typer.Option(help="auto, paper or scratch, with +change if wanted (paper+without_srpp), or a YAML file.")
]
Weights = Annotated[
    str, typer.Option(help="auto (SAM2.1 tiny from the hub), hub id, HF folder, Meta .pt, none, or a run of ours.")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="Plan YAML from `fingerprint`, not the proposed one.")]
Fold = Annotated[str | None, typer.Option(help="i/n: fold i of n is the test set, instead of the 20%.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One option of the recipe, section.key=value; may be repeated.")
]
Minutes = Annotated[
    float | None, typer.Option(help="As many epochs as fit into this time, measured at the start.", min=0.1)
]
Epochs = Annotated[int | None, typer.Option(help="So many epochs, instead of the recipe's.", min=1)]
Loggers = Annotated[
    list[str] | None, typer.Option("--logger", help="Besides TensorBoard: mlflow or wandb; may be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, as it began.")]
Test = Annotated[bool, typer.Option("--test", help="Predict and evaluate the test set when training ends.")]
GpuMemory = Annotated[
    float | None, typer.Option(help="GB that a GPU has: choose how a step is taken so that it fits.", min=0.1)
]
Devices = Annotated[
    int | None, typer.Option(help="GPUs of a machine (or processes, without GPUs) that share each batch.", min=1)
]
System = Annotated[str, typer.Option(help=f"Ours, or {', '.join(SYSTEMS)}.")]
Nodes = Annotated[int | None, typer.Option(help="Machines, on which torchrun or srun starts this.", min=1)]


@commands.command(
    epilog=examples(
        "sam2-3dmed train Task09_Spleen --out runs/spleen --test",
        "sam2-3dmed train Task09_Spleen --weights sam2.1_hiera_tiny.pt --recipe paper",
        "sam2-3dmed train Task09_Spleen --weights none --minutes 30 --set model.size=nano",
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
    epochs: Epochs = None,
    loggers: Loggers = None,
    resume: Resume = False,
    test: Test = False,
    gpu_memory: GpuMemory = None,
    devices: Devices = None,
    nodes: Nodes = None,
    system: System = OURS,
) -> None:
    """Fine-tune on a folder of labelled volumes; leaves a run folder that predict, report and compare read."""
    given: dict[str, object] = {
        "--recipe": recipe != "auto",
        "--weights": weights != "auto",
        "--plan": plan,
        "--fold": fold,
    }
    given |= {"--set": settings, "--minutes": minutes, "--epochs": epochs, "--logger": loggers}
    given |= {"--gpu-memory": gpu_memory, "--system": system != OURS}
    if resume and any(given.values()):
        ignored = ", ".join(option for option, value in given.items() if value)
        raise ConfigError(f"--resume goes on as the run began; it takes no {ignored}")
    more = [*(settings or []), *_budget(minutes, epochs)]
    if loggers:
        more.append(f"training.loggers=[{', '.join(dict.fromkeys(['tensorboard', *loggers]))}]")
    config, chosen_fold = _config(recipe, weights, more, system), _fold(fold)
    if (devices or 1) > 1 or {"LOCAL_RANK", "SLURM_LOCALID"} & os.environ.keys():
        # Else each process says that slabs leave no weight unused; torch reads this when it is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from sam2_3dmed.run.train import TrainRequest, test_run, train_run  # seconds of imports, so mistakes come first

    how: dict[str, Any] = {"gpu_memory": gpu_memory, "devices": devices, "nodes": nodes, "system": system}
    request = TrainRequest(data, out, config=config, weights=weights, plan=plan, fold=chosen_fold, resume=resume, **how)
    folder = train_run(request)
    if folder is None:  # another process speaks for this run
        return
    typer.echo(f"Model: {folder}")
    if test:
        typer.echo(summary_text(test_run(folder, data).summary()))


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
    config, chosen_fold = _sam2_config(recipe, weights, settings or []), _fold(fold)

    from sam2_3dmed.run.train import TrainRequest, find_learning_rate

    request = TrainRequest(data, out, config=config, weights=weights, plan=plan, fold=chosen_fold)
    rate, folder = find_learning_rate(request)
    typer.echo(f"{folder / 'learning_rates.png'} shows how the loss answers to each; the recipe has ", nl=False)
    typer.echo(f"{config.training.learning_rate:g}, and the suggestion is:\n--set training.learning_rate={rate:.1e}")


def _config(recipe: str, weights: str, settings: Sequence[str], system: str = OURS) -> "RunConfig | SystemConfig":
    if system == OURS:
        return _sam2_config(recipe, weights, settings)
    from sam2_3dmed.baselines.recipes import system_recipe

    if recipe != "auto":
        raise ConfigError(f"--recipe {recipe} is for {OURS}; {system} has its own, which --set changes")
    return system_recipe(system, settings)


def _sam2_config(recipe: str, weights: str, settings: Sequence[str]) -> "RunConfig":
    from sam2_3dmed.config import read_recipe, with_settings

    if "without_pretraining" in recipe and weights != "none":
        raise ConfigError(f"--recipe {recipe}: without pre-training means --weights none")
    return with_settings(read_recipe(recipe, from_scratch=weights == "none"), settings)


def _budget(minutes: float | None, epochs: int | None) -> list[str]:
    """As settings."""
    if minutes is not None and epochs is not None:
        raise ConfigError("--minutes and --epochs both say how long to train; give one of them")
    if epochs is not None:
        return [f"training.epochs={epochs}", "training.minutes=none"]
    return [] if minutes is None else [f"training.minutes={minutes}"]


def _fold(text: str | None) -> tuple[int, int] | None:
    """`i/n` as numbers, 1 <= i <= n."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"--fold {text}: expected i/n with i from 1 to n, such as 1/5")
    return int(number), int(count)
