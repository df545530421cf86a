"""A training run: the data a plan prepares, the trainer that a recipe asks for, and the best weights at its end."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from torch.utils.data import DataLoader, Dataset

from sam2_3dmed.config import RunConfig
from sam2_3dmed.data.augment import WindowAugmentation
from sam2_3dmed.data.cache import CaseCache
from sam2_3dmed.data.windows import EpochSampler, WindowDataset, Windows, collate
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.curves import CurvesFile
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.module import MONITORED, TrainingModule

logger = logging.getLogger(__name__)

BEST_CHECKPOINT = "best.ckpt"
LAST_CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class FitResult:
    """How a run ended. The network holds the best weights."""

    best_dice: float
    epochs: int
    steps: int


def fit(
    network: SAM2For3dMed,
    predictor: Predictor,
    *,
    training: CaseCache,
    validation: CaseCache,
    config: RunConfig,
    folder: Path,
    resume: bool = False,
) -> FitResult:
    """Train a network and leave the best weights in it; curves, logs and checkpoints go below `folder`.

    predictor: wraps the same network and has the run's window. resume: go on from the last checkpoint, as if never
    interrupted.

    Raises:
        KeyboardInterrupt: the user stopped it; `resume` goes on from the last whole epoch.
    """
    checkpoint = folder / "checkpoints" / LAST_CHECKPOINT
    if resume and not checkpoint.exists():
        logger.info("%s: no checkpoint yet, so the run starts anew", checkpoint)
        resume = False
    loader = _loader(network, predictor, training, config)
    module = TrainingModule(
        network,
        loss=_loss(config),
        predictor=predictor,
        validation=list(validation),
        config=config.training,
        steps_per_epoch=len(loader),
    )
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor=MONITORED, mode="max", enable_version_counter=False)
    cases = DataLoader(_Numbers(len(validation)), batch_size=None)
    with _quiet_lightning():
        trainer = _trainer(config, folder, best, len(loader))
        _fit(trainer, module, loader, cases, checkpoint if resume else None)
        epochs, steps = trainer.current_epoch, trainer.global_step
        last_score = None if module.validated_step == steps else _validate(trainer, module, cases)
    best_score = -1.0 if best.best_model_score is None else float(best.best_model_score)
    if last_score is not None and last_score > best_score:
        return FitResult(last_score, epochs, steps)
    state = torch.load(folder / "checkpoints" / BEST_CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    return FitResult(best_score, epochs, steps)


def _fit(trainer: lightning.Trainer, module: TrainingModule, loader: Any, cases: Any, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, loader, cases, ckpt_path=checkpoint)
    except SystemExit:  # Lightning's answer to Ctrl-C, after which it ignores the next one
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _validate(trainer: lightning.Trainer, module: TrainingModule, cases: Any) -> float:
    """The score of the weights as they are: the last epochs may lie beyond the last regular validation."""
    (metrics,) = trainer.validate(module, cases, verbose=False)
    return float(metrics[MONITORED])


def _loss(config: RunConfig) -> TotalLoss:
    return TotalLoss(
        segmentation=config.loss.segmentation,
        lambda_srpp=config.loss.lambda_srpp,
        lambda_boundary=config.loss.lambda_boundary,
        boundary_normalise=config.loss.boundary_normalise,
    )


def use_bf16(precision: str, device: str) -> bool:
    """Whether autocast to bf16 is asked for or, with `auto`, fast here: a CPU needs instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _loader(network: SAM2For3dMed, predictor: Predictor, cases: CaseCache, config: RunConfig) -> DataLoader[Windows]:
    training = config.training
    dataset = WindowDataset(
        cases,
        window_slices=predictor.passes.window_slices,
        augmentation=WindowAugmentation(config.augmentation, network.encoder.image_size),
        foreground_fraction=training.foreground_fraction,
        seed=training.seed,
    )
    workers = training.workers if training.workers is not None else min(8, (os.cpu_count() or 1) - 1)
    return DataLoader(
        dataset,
        batch_size=training.batch_size,
        sampler=EpochSampler(training.windows_per_epoch or len(cases)),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork of a process with threads can hang
        pin_memory=torch.cuda.is_available(),
    )


def _trainer(config: RunConfig, folder: Path, best: ModelCheckpoint, num_batches: int) -> lightning.Trainer:
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


class _Numbers(Dataset[int]):
    """0, 1, ...: the module looks the volumes up, so that no memory map passes through Lightning."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number


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
def _quiet_lightning() -> Iterator[None]:
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
