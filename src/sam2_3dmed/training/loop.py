"""The training loop: epochs of steps, a validation of whole volumes now and then, and checkpoints.

`TrainingLoop.run` is a run from top to bottom. `Learner` takes the single steps, also of a `trial`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from sam2_3dmed.encoders.precision import use_bf16
from sam2_3dmed.errors import TrainingError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.processes.signals import Terminated, on_sigterm
from sam2_3dmed.training.checkpoints import Checkpoints, read_checkpoint
from sam2_3dmed.training.distributed import any_of
from sam2_3dmed.training.early_stopping import EarlyStopping
from sam2_3dmed.training.loggers import RunLogger, draw_slice, make_loggers
from sam2_3dmed.training.monitoring import DataWait, append_curves, gradient_norms
from sam2_3dmed.training.optimizer import EMA, trained_weights
from sam2_3dmed.training.trainable import MONITORED, Trainable

logger = logging.getLogger(__name__)


class Learner:
    """A trainable with its optimiser, on the device of this process.

    before_step: called when the gradients of a step are complete, before they are clipped.
    """

    def __init__(self, trainable: Trainable, fabric: Fabric, before_step: Callable[["Learner"], None]) -> None:
        self.trainable = trainable
        self.config = trainable.config
        self.fabric = fabric
        self.before_step = before_step
        self.bf16 = use_bf16(self.config.precision, fabric.device.type)
        trainable.to(fabric.device)
        trainable.network.train()
        self.optimizer, self.schedule = trainable.configure_optimizers()
        self.module = fabric.setup_module(trainable)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run. Casts of weights are not kept, so that gradients add up in 32 bit."""
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def take_pass(self, batch: Any) -> bool:
        """Learn from this process's part of a batch. Returns: whether the optimiser has stepped."""
        trainable, progress = self.trainable, self.trainable.progress
        passes_a_step = self.config.grad_accum_steps
        last = (progress.passes + 1) % passes_a_step == 0
        batch = self.fabric.to_device(batch)
        if progress.passes % passes_a_step == 0:
            self.optimizer.zero_grad()
        with self.fabric.no_backward_sync(self.module, enabled=not last):
            with self.autocast():
                loss = self.module(batch)
            self.fabric.backward(loss / passes_a_step)
        trainable.means.add("learning_rate", self.optimizer.param_groups[0]["lr"])
        progress.passes += 1
        if last:
            self._step()
        return last

    def _step(self) -> None:
        self.before_step(self)
        if (norm := self.config.clip_gradient_norm) is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.schedule.step()
        self.trainable.progress.step += 1


def check_gradients(learner: Learner) -> None:
    """Count the norm of each part's gradients; stop a run whose next step would spoil the weights.

    Raises:
        TrainingError: the loss or a gradient is not finite.
    """
    trainable = learner.trainable
    norms = gradient_norms(trainable.parts())
    # One transfer for all: on a GPU each would wait for the step.
    values = torch.stack([*norms.values(), *trainable.latest.values()]).tolist()
    for name, value in zip(norms, values, strict=False):
        trainable.means.add(f"gradient/{name}", value)
    names = [f"{name} gradient" for name in norms] + [f"{name} loss" for name in trainable.latest]
    wrong = [f"{name} {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
    if wrong:
        progress = trainable.progress
        raise TrainingError(
            f"epoch {progress.epoch + 1}, step {progress.step + 1}: not finite: {', '.join(wrong)}; "
            "the checkpoints are from before it; a lower training.learning_rate may help"
        )


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
        self.stopping = EarlyStopping(config, trainable.cooldown, trainable.steps_per_epoch)
        self.ema = None if config.ema_decay is None else EMA(trainable, config.ema_decay)
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
            Terminated: SIGTERM came; the latest checkpoint has all that is done.
        """
        if checkpoint is not None:
            self._restore(read_checkpoint(checkpoint))
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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not (console.is_terminal and loop.fabric.is_global_zero)
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("training", total=len(loop.trainable.division))

        def show() -> None:
            loss = float(loop.trainable.latest["total"])
            text = f"epoch {loop.progress.epoch + 1} of {loop.stopping.epochs}, loss {loss:.3f}"
            bar.update(task, completed=loop.progress.passes, description=text)

        yield (lambda: None) if disable else show


@contextmanager
def trial(trainable: Trainable, fabric: Fabric, before_step: Callable[[Learner], None]) -> Iterator[Iterator[None]]:
    """Training that leaves no trace, from the first slabs on: weights are put back at the end.

    Yields:
        An iterator without end, of which each item is a pass.
    """
    before = trained_weights(trainable)
    try:
        yield _passes(Learner(trainable, fabric, before_step))
    finally:
        trainable.put_back(before)


def _passes(learner: Learner) -> Iterator[None]:
    trainable, progress = learner.trainable, learner.trainable.progress
    while True:
        trainable.division.move_to(progress.epoch)
        for batch in trainable.loader:
            learner.take_pass(batch)
            yield
        progress.epoch += 1
        progress.passes = 0
