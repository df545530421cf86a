"""A training run: epochs of steps, a validation of whole volumes now and then, checkpoints, and when it ends."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from sam2_3dmed.config import TrainingConfig
from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.processes.map_cases import terminal_bar
from sam2_3dmed.processes.signals import Terminated, on_sigterm
from sam2_3dmed.training.checkpoints import (
    BEST_CHECKPOINT,
    Checkpoints,
    best_state,
    is_whole,
    newest_whole_state,
    read_checkpoint,
    saved_states,
)
from sam2_3dmed.training.distributed import DistributedContext, any_of
from sam2_3dmed.training.loader import shares
from sam2_3dmed.training.loggers import RunLogger, draw_slice, make_loggers
from sam2_3dmed.training.monitoring import DataWait, append_curves
from sam2_3dmed.training.optimizer import EMA, Cooldown, trained_weights
from sam2_3dmed.training.trainable import MONITORED, Learner, Progress, Trainable, check_gradients
from sam2_3dmed.training.trials import within_minutes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """How a run ended. The network holds the best weights."""

    best_dice: float
    epochs: int
    steps: int


def fit(
    assemble: Callable[[TrainingConfig], Trainable],
    training: TrainingConfig,
    folder: Path,
    distributed: DistributedContext,
    *,
    resume: bool,
) -> FitResult:
    """Train a network and leave the best weights in it; curves, logs and checkpoints go below `folder`.

    Args:
        assemble: makes the trainable; called again when minutes have become epochs.
        distributed: the processes that train together, each of which calls this.

    Raises: as `TrainingLoop.run`.
    """
    checkpoints = folder / "checkpoints"
    if not resume and distributed.first:
        for path in saved_states(checkpoints):  # of an earlier run in the same place
            path.unlink()
    trainable = assemble(training)
    checkpoint = newest_whole_state(checkpoints, trainable.state_dict()) if resume else None
    if resume and checkpoint is None:
        logger.info("%s: no checkpoint yet, so the run starts anew", folder)
    fabric = distributed.launch()
    if training.minutes is not None:
        trainable = assemble(within_minutes(trainable, folder, fabric, resume=resume))
    features = trainable.features
    if features is not None:
        features.describe(trainable.config)
    sizes = [case.num_slices for case in trainable.validation]
    cases = shares(sizes, distributed.size)[distributed.rank]
    TrainingLoop(trainable, cases, folder, fabric).run(checkpoint)
    if features is not None:
        features.close()
    best = best_state(checkpoints, trainable.state_dict())
    trainable.cpu().load_state_dict(best["state_dict"])
    return FitResult(best["best_score"], trainable.progress.epoch, trainable.progress.step)


class EarlyStopping:
    """Ends a run `config.patience` validations after the best one.

    Much of what a cosine gains comes at its end, as the rate falls. With `config.cooldown`, exhausted patience
    therefore does not stop the run at once: the rate falls to its final value within that share of the epochs done,
    and there the run ends. If no more epochs than that are left, the cosine goes on as it is. Epochs of single slices
    do not count, since the epochs of slabs come in any case.

    cooldown: of the schedule; is set when patience is exhausted.
    """

    def __init__(self, config: TrainingConfig, cooldown: Cooldown, steps_per_epoch: int) -> None:
        self.config = config
        self.cooldown = cooldown
        self.steps_per_epoch = steps_per_epoch
        self.best: float | None = None
        self.waited = 0
        self.last_epoch: int | None = None
        """The number of epochs of a run that ends early."""

    @property
    def epochs(self) -> int:
        return self.config.epochs if self.last_epoch is None else self.last_epoch

    def validates(self, epoch: int) -> bool:
        """Whether an epoch ends with a validation; the last one does in any case. epoch: from 0."""
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.epochs

    def count(self, score: float, progress: Progress) -> None:
        """Take in a validation of slabs. progress: the epoch that it ends is not counted as done yet."""
        if self.config.patience is None or self.last_epoch is not None:
            return
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        done = progress.epoch + 1
        more = math.ceil(self.config.cooldown * done)
        if self.waited < self.config.patience or done + more >= self.config.epochs:
            return
        self.last_epoch = done + more
        self.cooldown.start, self.cooldown.steps = progress.step, more * self.steps_per_epoch
        logger.info("no better validation Dice for %d validations: %d more epochs, then the end", self.waited, more)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class TrainingLoop:
    """A run: trains until its last epoch, and leaves curves, pictures, logs and checkpoints below `folder`.

    cases: the validation cases of this process, by number.
    """

    def __init__(self, trainable: Trainable, cases: Sequence[int], folder: Path, fabric: Fabric) -> None:
        self.trainable = trainable
        self.progress = trainable.progress
        self.cases = cases
        self.folder = folder
        self.fabric = fabric
        config = trainable.config
        self.learner = Learner(trainable, fabric, check_gradients)
        self.stopping = EarlyStopping(config, trainable.cooldown, trainable.division.steps)
        self.ema = None if config.ema_decay is None else EMA(trainable, config.ema_decay)
        trainable.teacher = self.ema if trainable.has_teacher else None
        self.checkpoints = Checkpoints(
            folder / "checkpoints", keep=config.keep_checkpoints, minutes=config.checkpoint_minutes
        )
        self.best_score: float | None = None
        self.data_wait = DataWait()
        self.loggers: list[RunLogger] = []
        self.terminating = False
        """Whether SIGTERM has come."""
        self._validating = False

    def run(self, checkpoint: Path | None) -> None:
        """Train from the beginning, or from a checkpoint.

        Raises:
            TrainingError: the loss or a gradient is not finite.
            Terminated: SIGTERM came; a run that is resumed goes on from the latest checkpoint.
            DataError: the checkpoint is of another run.
        """
        if checkpoint is not None:
            try:
                self._restore(read_checkpoint(checkpoint))
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise DataError(
                    f"{checkpoint}: not a state of this run ({shown(error)}); without it --resume goes on from the one "
                    "before"
                ) from None
            self._require_best()
        with self._outputs(resumed=checkpoint is not None), self._sigterm(), progress_bar(self) as show:
            while self.progress.epoch < self.stopping.epochs:
                self._train_epoch(show)
                metrics = self._validate() if self.stopping.validates(self.progress.epoch) else {}
                self._end_epoch(metrics)
        self.data_wait.log()

    def _train_epoch(self, show: Callable[[], None]) -> None:
        """The passes of an epoch, or those that are left of it."""
        self.trainable.division.move_to(self.progress.epoch, self.progress.passes)
        for batch in self.data_wait.batches(self.trainable.loader):
            stepped = self.learner.take_pass(batch)
            if stepped and self.ema is not None:
                self.ema.update(self.progress.step)
            self.data_wait.done()
            show()
            if stepped and self.progress.passes < len(self.trainable.division):
                self._save_within_epoch()

    def _save_within_epoch(self) -> None:
        """Save if it is time, or if SIGTERM has come, which ends the run here."""
        terminating, due = any_of(self.fabric, self.terminating, self.checkpoints.is_due)
        if terminating or due:
            self._save()
        if terminating:
            raise Terminated

    def _validate(self) -> dict[str, float]:
        """Predict whole volumes; keep the weights if they are the best so far."""
        if any(any_of(self.fabric, self.terminating)):  # a validation may take longer than the time that is left
            raise Terminated
        self._validating = True
        network = self.trainable.network
        network.eval()
        averaged = self.ema.in_place() if self.ema else nullcontext()
        with averaged, torch.inference_mode(), self.learner.autocast():
            metrics = self.trainable.validate(self.cases)
        network.train()
        self._validating = False
        score = metrics[MONITORED]
        if not self.trainable.sees_single_slices:
            self.stopping.count(score, self.progress)
        self._show(metrics)
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            if self.fabric.is_global_zero:
                self.checkpoints.save_best(self._averaged_weights(), score)
        return metrics

    def _show(self, metrics: dict[str, float]) -> None:
        """A log line and a picture of a validation."""
        of_class = ", ".join(f"{name} {metrics[f'{MONITORED}_{name}']:.3f}" for name in self.trainable.class_names)
        epoch, step = self.progress.epoch + 1, self.progress.step
        message = "epoch %d of %s, step %d: validation Dice %.4f (%s)"
        logger.info(message, epoch, self.stopping.epochs, step, metrics[MONITORED], of_class)
        if not self.fabric.is_global_zero or self.trainable.shown is None:
            return
        from matplotlib.image import imsave

        pixels = draw_slice(self.trainable.shown, self.trainable.class_names, f"epoch {epoch}")
        path = self.folder / "pictures" / f"epoch_{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            imsave(file, pixels, format="png")
        for to in self.loggers:
            to.log_image("validation/slice", pixels, step)

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        """Write curves and a checkpoint."""
        progress = self.progress
        row = {**self.trainable.means.compute(), **metrics}
        self.trainable.means.clear()
        loader_share = self.data_wait.end_epoch()
        if self.fabric.is_global_zero:
            append_curves(self.folder / "curves.csv", {"epoch": progress.epoch, "step": progress.step, **row})
        for to in self.loggers:
            to.log({"epoch": progress.epoch, **row, "loader_share": loader_share}, progress.step)
        progress.epoch += 1
        progress.passes = 0
        self._save()
        if any(any_of(self.fabric, self.terminating)):
            raise Terminated

    def _save(self) -> None:
        """Save all that a run that goes on from here needs; every process must call this."""
        trainable = self.trainable
        state = {
            "state_dict": self._averaged_weights(),
            "weights_in_training": None if self.ema is None else trained_weights(trainable),
            "optimizer": self.learner.optimizer.state_dict(),
            "schedule": self.learner.schedule.state_dict(),
            "progress": asdict(self.progress),
            "means": trainable.means.state_dict(),
            "cooldown": asdict(trainable.cooldown),
            "early_stopping": self.stopping.state_dict(),
            "best_score": self.best_score,
        }
        if self.fabric.is_global_zero:
            self.checkpoints.save(state, self.progress.step)

    def _restore(self, state: dict[str, Any]) -> None:
        trainable = self.trainable
        trainable.load_state_dict(state["state_dict"])
        if self.ema is not None:
            self.ema.weights = trained_weights(trainable)
            trainable.load_state_dict(state["weights_in_training"], strict=False)
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.learner.schedule.load_state_dict(state["schedule"])
        vars(self.progress).update(state["progress"])
        if self.fabric.is_global_zero:  # they are those of all processes
            trainable.means.load_state_dict(state["means"])
        vars(trainable.cooldown).update(state["cooldown"])
        self.stopping.load_state_dict(state["early_stopping"])
        self.best_score = state["best_score"]

    def _require_best(self) -> None:
        """Without the best weights so far, the best of the coming validations are kept."""
        path = self.checkpoints.folder / BEST_CHECKPOINT
        if self.best_score is not None and not is_whole(path):
            logger.warning("%s: missing or broken; the best weights of what follows take its place", path)
            self.best_score = None

    def _averaged_weights(self) -> dict[str, torch.Tensor]:
        """All weights; of those that train the average, if there is one."""
        return {**self.trainable.state_dict(), **(self.ema.weights if self.ema else {})}

    @contextmanager
    def _outputs(self, *, resumed: bool) -> Iterator[None]:
        """Loggers, open for the time of the run; in the first process."""
        if self.fabric.is_global_zero:
            for left in self.checkpoints.folder.glob(".*.partial"):  # that a killed run was writing
                left.unlink(missing_ok=True)
            resumed_step = self.progress.step if resumed else None
            self.loggers = make_loggers(self.trainable.config.loggers, self.folder, resumed_step)
        finished = False
        try:
            yield
            finished = True
        finally:
            for to in self.loggers:
                to.close(finished=finished)

    @contextmanager
    def _sigterm(self) -> Iterator[None]:
        """SIGTERM ends the run after the step that is being taken, or breaks off a validation."""
        try:
            with on_sigterm(self._on_sigterm):
                yield
        except RuntimeError as error:
            if not self.terminating:
                raise
            raise Terminated from error  # the loader's: SIGTERM may reach its workers, too

    def _on_sigterm(self) -> None:
        self.terminating = True
        if self._validating:  # it is done again from the latest checkpoint
            raise Terminated


@contextmanager
def progress_bar(loop: TrainingLoop) -> Iterator[Callable[[], None]]:
    """A bar of the passes of an epoch, on the terminal of the first process; yields what updates it."""
    bar = terminal_bar(transient=True)
    bar.disable = not (bar.console.is_terminal and loop.fabric.is_global_zero)
    task = bar.add_task("training", total=len(loop.trainable.division))

    def show() -> None:
        loss = float(loop.trainable.latest["total"])
        text = f"epoch {loop.progress.epoch + 1} of {loop.stopping.epochs}, loss {loss:.3f}"
        bar.update(task, completed=loop.progress.passes, description=text)

    with bar:
        yield (lambda: None) if bar.disable else show
