"""Lightning's trainer as a recipe asks for it: device, precision, checkpoints, curves, log lines."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger

from sam2_3dmed.config import RunConfig
from sam2_3dmed.training.curves import CurvesFile
from sam2_3dmed.training.module import MONITORED

logger = logging.getLogger(__name__)

BEST_CHECKPOINT = "best.ckpt"
LAST_CHECKPOINT = "last.ckpt"


def use_bf16(precision: str, device: str) -> bool:
    """Whether autocast to bf16 is asked for or, with `auto`, fast here: a CPU needs instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def make_trainer(config: RunConfig, folder: Path, best: ModelCheckpoint, num_batches: int) -> lightning.Trainer:
    """The trainer of a run in `folder`.

    best: keeps the best weights. num_batches: of an epoch.
    """
    training = config.training
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if use_bf16(training.precision, device) else "32-true",
        max_epochs=training.epochs,
        max_time=None if training.max_minutes is None else {"seconds": round(training.max_minutes * 60)},
        gradient_clip_val=training.clip_gradient_norm,
        check_val_every_n_epoch=min(training.validate_every, training.epochs),
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        log_every_n_steps=min(10, num_batches),
        callbacks=_callbacks(config, folder, best),
        enable_model_summary=False,
        use_distributed_sampler=False,
        # On a GPU some backward passes (of bicubic resizing, for one) have no deterministic form at all.
        deterministic=True if device == "cpu" else "warn",
    )


def _callbacks(config: RunConfig, folder: Path, best: ModelCheckpoint) -> Sequence[Callback]:
    training = config.training
    callbacks: list[Callback] = [CurvesFile(folder / "curves.csv"), _Log(), RichProgressBar(leave=False)]
    if training.weight_average is not None:
        callbacks.append(EMAWeightAveraging(decay=training.weight_average))
    if training.patience is not None:
        callbacks.append(
            EarlyStopping(MONITORED, mode="max", patience=training.patience, check_on_train_epoch_end=False)
        )
    last = ModelCheckpoint(
        folder / "checkpoints",
        LAST_CHECKPOINT.removesuffix(".ckpt"),
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [*callbacks, best, last]


class _Log(Callback):
    """A line in the log for every validation."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say where the run is."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        classes = ", ".join(
            f"{name.removeprefix('validation/dice_')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith("validation/dice_")
        )
        logger.info(
            "epoch %d of %s, step %d: validation Dice %.4f (%s)",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            trainer.global_step,
            metrics[MONITORED],
            classes,
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on matters that are settled here, and without its own deprecations."""
    advisers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [adviser.level for adviser in advisers]
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*treespec, LeafSpec.*",
            ".*module\\(s\\) in eval mode.*",  # the frozen encoder is
            ".*The dirpath has changed from.*",  # a run folder may be moved
        ):
            warnings.filterwarnings("ignore", text)
        for adviser in advisers:
            adviser.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for adviser, level in zip(advisers, levels, strict=True):
                adviser.setLevel(level)


def seed_everything(seed: int) -> None:
    """Fix every random number that building a network draws."""
    lightning.seed_everything(seed, workers=True, verbose=False)
