"""Lightning's trainer as a recipe asks for it: device, precision, checkpoints, curves, log lines."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.encoders.precision import bf16_is_fast
from sam2_3dmed.training.checkpoints import Checkpoints, WholeFiles
from sam2_3dmed.training.csv_logger import CurvesFile
from sam2_3dmed.training.data_wait import LoaderShare
from sam2_3dmed.training.diagnostics import GradientNorms
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.early_stopping import EarlyStopping
from sam2_3dmed.training.ema import WeightAverage
from sam2_3dmed.training.image_logger import SlicePictures
from sam2_3dmed.training.loggers import make_loggers
from sam2_3dmed.training.run_module import MONITORED

logger = logging.getLogger(__name__)


def use_bf16(precision: str, device: str) -> bool:
    """Whether autocast to bf16 is asked for or, with `auto`, fast here."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


def make_trainer(
    training: TrainingConfig, folder: Path, loader: Any, resumed_step: int | None, distributed: DistributedContext
) -> lightning.Trainer:
    """The trainer of a run in `folder`.

    loader: of the training slabs. resumed_step: where a resumed run goes on.
    """
    return base_trainer(
        training,
        distributed,
        max_epochs=training.epochs,
        check_val_every_n_epoch=min(training.validate_every, training.epochs),
        logger=make_loggers(training.loggers, folder, resumed_step),
        log_every_n_steps=min(10, len(loader)),
        callbacks=_callbacks(training, folder, loader),
        plugins=[WholeFiles()],
        default_root_dir=folder,
    )


def base_trainer(training: TrainingConfig, distributed: DistributedContext, **options: Any) -> lightning.Trainer:
    """A trainer on the devices of a run, in the precision, with the passes a step and the clipping of a recipe."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=distributed.devices,
        num_nodes=distributed.nodes,
        strategy=distributed.strategy(),
        accumulate_grad_batches=training.grad_accum_steps,
        precision="bf16-mixed" if use_bf16(training.precision, device) else "32-true",
        gradient_clip_val=training.clip_gradient_norm,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
        # On a GPU some backward passes (of bicubic resizing, for one) have no deterministic form at all.
        deterministic=True if device == "cpu" else "warn",
        **options,
    )


def _callbacks(training: TrainingConfig, folder: Path, loader: Any) -> Sequence[Callback]:
    callbacks: list[Callback] = [
        GradientNorms(),
        EarlyStopping(training),
        CurvesFile(folder / "curves.csv"),
        LoaderShare(),
        SlicePictures(folder / "pictures"),
        _Log(),
        RichProgressBar(leave=False),
        Checkpoints(
            folder / "checkpoints", loader, keep=training.keep_checkpoints, minutes=training.checkpoint_minutes
        ),
    ]
    if training.ema_decay is not None:
        callbacks.append(WeightAverage(training.ema_decay))
    return callbacks


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
            ".*have no `val_dataloader`.*",  # a trial validates nothing
            ".*your dataloader is not resumable.*",  # its sampler is, and is told where
            ".*treespec, LeafSpec.*",
            ".*module\\(s\\) in eval mode.*",  # the frozen encoder is
            ".*Grad strides do not match bucket view strides.*",  # of a convolution of one channel
            ".*recommended to use .*sync_dist=True.*",  # what is logged is gathered already
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
