"""Speaks as worker.py does, in our own environment: for tests of the side that talks to it. It learns a threshold."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sam2_3dmed.volume.volume import Volume


def say(**content):
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def plan(told):
    sys.stderr.write("planning\n")
    root = Path(os.environ["nnUNet_raw"]) / "Dataset001_run"  # noqa: SIM112
    dataset = json.loads((root / "dataset.json").read_text())
    (Path(os.environ["nnUNet_preprocessed"]) / root.name).mkdir()  # noqa: SIM112
    if told["configuration"] == "3d_lowres":
        say(error="no 3d_lowres")
    else:
        say(plans={"configurations": {told["configuration"]: {"patch_size": [8, 16, 16]}}}, dataset=dataset)


def train(told):
    split = json.loads((Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_run" / "splits_final.json").read_text())  # noqa: SIM112
    raw = Path(os.environ["nnUNet_raw"]) / "Dataset001_run"  # noqa: SIM112
    held = [Volume.read(raw / "labelsTr" / f"{name}.nii.gz").array.max() for name in split[0]["val"]]
    state = Path(os.environ["nnUNet_results"]) / "epoch"  # noqa: SIM112
    first = int(state.read_text()) if state.is_file() else 0
    peaks = {"peak_mb": 800.0, "gpu_peak_mb": 60.0} if first else {"peak_mb": 900.0, "gpu_peak_mb": None}
    for epoch in range(first, told["epochs"]):
        sys.stderr.write(f"epoch {epoch}\n")
        state.write_text(str(epoch + 1))
        dice = [0.1 * (epoch + 1), float("nan")]
        steps = (epoch + 1) * told["steps_per_epoch"]
        rates = {"train_losses": -0.5, "val_losses": -0.4, "lrs": 0.01}
        say(epoch=epoch + 1, epochs=told["epochs"], steps=steps, dice=dice, **rates, **peaks)
        if told["seed"] == 13 and epoch == 1 and first == 0:
            raise RuntimeError("out of luck")
    save_file({"held": torch.tensor(float(np.max(held)))}, told["weights"], {"mirroring_axes": "null"})
    say(done=True, **{**peaks, "peak_mb": peaks["peak_mb"] + 50})


def predict(told):
    assert Path(told["weights"]).is_file()
    num_classes = len(told["dataset"]["labels"]) - 1
    say(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        image = Volume.read(job["images"][0])
        bright = image.array > image.array.mean()
        image.with_array(bright.astype(np.uint8) * num_classes).write(job["mask"])
        if job["probabilities"]:
            shares = np.zeros((num_classes + 1, *bright.T.shape), dtype=np.float32)
            shares[0], shares[num_classes] = 1 - 0.9 * bright.T, 0.9 * bright.T
            np.save(job["probabilities"], shares)
        say(done=True, gflop=2.5 if job["count"] else None, peak_mb=700.0, gpu_peak_mb=70.0)


{"plan": plan, "train": train, "predict": predict}[sys.argv[1]](json.loads(sys.stdin.readline()))
