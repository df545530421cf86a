"""Runs inside nnU-Net's environment, which does not have our package: plans, trains, predicts.

`python worker.py plan | train | predict` reads requests as lines of JSON on standard input and answers each with lines
of JSON on standard output; `environment.Worker` is the other side. nnU-Net's own output goes to standard error.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

Say = Callable[..., None]

_DATASET = 1
_FEWEST_EPOCHS = 20
"""Of a run with a budget of minutes, since the rate falls by the epoch; fewer if epochs would be shorter than this."""
_FEWEST_STEPS = 10
_MEASURED = 2
"""Steps that are timed to plan minutes, after one that is not counted; on a CPU each takes seconds."""
_MARGIN = 0.05
"""Share of the minutes for checkpoints and everything else that is not measured."""
_CHECKPOINTS = 50
"""States of a run that it can go on from."""


def plan(request: dict[str, Any], say: Say) -> None:
    """Fingerprint, plans, and cases on their grid. request: planner, configuration."""
    processes = int(os.environ["nnUNet_def_n_proc"])  # noqa: SIM112
    planning.extract_fingerprint_dataset(_DATASET, num_processes=processes, verbose=False, show_progress_bar=False)
    identifier = planning.plan_experiments([_DATASET], request["planner"])
    folder = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{_DATASET:03d}_*"))  # noqa: SIM112
    plans = json.loads((folder / f"{identifier}.json").read_text(encoding="utf-8"))
    if request["configuration"] not in plans["configurations"]:
        say(error=f"nnU-Net plans no {request['configuration']} for these cases: {', '.join(plans['configurations'])}")
        return
    planning.preprocess_dataset(_DATASET, identifier, [request["configuration"]], [processes], show_progress_bar=False)
    say(plans=plans, dataset=json.loads((folder / "dataset.json").read_text(encoding="utf-8")))


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer, for a number of epochs or of minutes; it reports each epoch."""

    say: Say
    minutes: float | None = None
    began = 0.0

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.minutes is not None:
            self.num_epochs, self.num_iterations_per_epoch = self._fitting(60 * self.minutes * (1 - _MARGIN))
            self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
            self.lr_scheduler.max_steps = self.num_epochs
            self.logger.plot_progress_png = lambda _: None  # takes seconds an epoch; curves.csv has the same
        self.save_every = max(1, self.num_epochs // _CHECKPOINTS)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        last = {name: float(self.logger.get_value(name, step=-1)) for name in ("train_losses", "val_losses", "lrs")}
        dice = [float(value) for value in self.logger.get_value("dice_per_class_or_region", step=-1)]
        steps = self.current_epoch * self.num_iterations_per_epoch
        told = {"steps": steps, "dice": dice, **last, **_peaks(self.device)}
        self.say(epoch=self.current_epoch, epochs=self.num_epochs, **told)

    def _fitting(self, seconds: float) -> tuple[int, int]:
        """Epochs and steps of each, kept in a file for a resumed run."""
        path = Path(self.output_folder) / "schedule.json"
        if path.is_file():
            epochs, steps = json.loads(path.read_text(encoding="utf-8"))
            return int(epochs), int(steps)
        self.lr_scheduler.step(0)
        self.network.train()
        step = self._seconds_of(lambda: self.train_step(next(self.dataloader_train)))
        with torch.no_grad():
            step += self._seconds_of(lambda: self.validation_step(next(self.dataloader_val))) / 5
        trial = Path(self.output_folder) / "trial.pth"
        between = 2 * self._seconds_of(lambda: self.save_checkpoint(str(trial)))  # the latest and the best
        trial.unlink()
        left = max(0.0, seconds - (time.monotonic() - self.began))
        schedule = fitting_schedule(left, step, between, self.num_epochs, self.num_iterations_per_epoch)
        path.write_text(json.dumps(schedule), encoding="utf-8")
        return schedule

    @staticmethod
    def _seconds_of(work: Callable[[], object]) -> float:
        work()
        started = time.monotonic()
        for _ in range(_MEASURED):
            work()
        return (time.monotonic() - started) / _MEASURED


def fitting_schedule(seconds: float, step: float, between: float, epochs: int, steps: int) -> tuple[int, int]:
    """Epochs, at most `epochs`, and steps of each, at most `steps`, that fit into the seconds; at least one of each.

    step, between: seconds of a step with its share of the validation, and between epochs.
    """
    total = max(1, int(seconds / (step + between / steps)))
    fewest = max(1, min(_FEWEST_EPOCHS, total // _FEWEST_STEPS))
    count = min(epochs, max(fewest, total // steps))
    return count, max(1, min(steps, int((seconds / count - between) / step)))


def train(request: dict[str, Any], say: Say) -> None:
    """Train, predict the validation cases as nnU-Net does, and write the last weights.

    request: plans, dataset, configuration, epochs, steps_per_epoch, minutes, seed, device, weights.
    """
    random.seed(request["seed"])
    np.random.seed(request["seed"])
    torch.manual_seed(request["seed"])
    Trainer.say, Trainer.minutes, Trainer.began = staticmethod(say), request["minutes"], time.monotonic()
    plans = {**request["plans"], "continue_training": False}
    trainer = Trainer(plans, request["configuration"], 0, request["dataset"], torch.device(request["device"]))
    trainer.num_epochs, trainer.num_iterations_per_epoch = request["epochs"], request["steps_per_epoch"]
    trainer.num_val_iterations_per_epoch = max(1, request["steps_per_epoch"] // 5)
    folder = Path(trainer.output_folder)
    found = [path for name in ("final", "latest") if (path := folder / f"checkpoint_{name}.pth").is_file()]
    if found:
        trainer.load_checkpoint(str(found[0]))
    if not found or found[0].stem != "checkpoint_final":
        trainer.run_training()
    trainer.perform_actual_validation(False)
    network: Any = getattr(trainer.network, "_orig_mod", trainer.network)  # torch.compile wraps it on a GPU
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    written = {name: weights[name] for name in first_names(network).values()}
    axes = trainer.inference_allowed_mirroring_axes
    save_file(written, request["weights"], {"mirroring_axes": json.dumps(None if axes is None else list(axes))})
    say(done=True, **_peaks(trainer.device))


def predict(request: dict[str, Any], say: Say) -> None:
    """Masks, one for each line that comes.

    request: plans, dataset, configuration, weights, device, flips, overlap. A line has images, mask, probabilities (a
    file for (K + 1, D, H, W) float32, or null) and count (whether to count operations).
    """
    manager = PlansManager(request["plans"])
    configuration = manager.get_configuration(request["configuration"])
    with safe_open(request["weights"], framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        axes = json.loads(file.metadata()["mirroring_axes"])
    network = nnUNetTrainer.build_network_architecture(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, request["dataset"]),
        manager.get_label_manager(request["dataset"]).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    network.load_state_dict({name: weights[first] for name, first in first_names(network).items()})
    predictor = nnUNetPredictor(
        tile_step_size=1 - request["overlap"],
        use_mirroring=request["flips"],
        device=torch.device(request["device"]),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], request["dataset"], "nnUNetTrainer", axes
    )
    files = manager.image_reader_writer_class()
    say(ready=True)
    for job in map(json.loads, sys.stdin):
        images, properties = files.read_images(job["images"])
        wanted = job["probabilities"] is not None
        with FlopCounterMode(display=False) if job["count"] else nullcontext() as counter:
            found = predictor.predict_single_npy_array(images, properties, save_or_return_probabilities=wanted)
        if wanted:
            found, probabilities = found
            np.save(job["probabilities"], probabilities.astype(np.float32))
        files.write_seg(found, job["mask"], properties)
        say(done=True, gflop=counter.get_total_flops() / 1e9 if counter else None, **_peaks(predictor.device))


def first_names(network: torch.nn.Module) -> dict[str, str]:
    """From each name of a weight to its first name: nnU-Net has some under several, and a file holds each once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in network.state_dict(keep_vars=True).items()}


def _peaks(device: torch.device) -> dict[str, float | None]:
    """The most memory of this process so far, and of torch on its GPU, in MB; None where unknown.

    Not from getrusage, where a process begins with the peak of its parent.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    peak_mb = next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
    gpu_peak_mb = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {"peak_mb": peak_mb, "gpu_peak_mb": gpu_peak_mb}


def main() -> None:
    """Run one command. nnU-Net and its processes must not print between the lines of JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    {"plan": plan, "train": train, "predict": predict}[sys.argv[1]](json.loads(sys.stdin.readline()), say)


if __name__ == "__main__":
    main()
