"""A prediction beside a 3D U-Net of nnU-Net's 3d_fullres size on the same volume: seconds and peak memory.

    python benchmarks/unet3d.py [--slices 120] [--models nano tiny] [--direction both] [--threads 2]
    python benchmarks/unet3d.py --size 160 --slices 32 --patch 64 --models nano          (a trial: a minute)

The U-Net is MONAI's DynUNet with 32, 64, 128, 256 and 320 channels, patches of 128 x 128 x 128, sliding window with
overlap 0.5, weighted by a Gaussian, no mirroring, fp32. Both have random weights, two classes, and the same synthetic
CT of 512 x 512 x 120; each reads the file, predicts, and writes the mask, in a process of its own. nnU-Net would
resample the volume before and the logits after, which is left out. Memory is the process's peak (ru_maxrss).
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from synthetic_ct import LABELS, make_in_process, peak_mb, random_predictor, run_alone

UNET = "DynUNet"


def unet_predictor(patch: int) -> Any:
    """From a volume to its mask."""
    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import DynUNet

    torch.manual_seed(0)
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1 + len(LABELS),
        kernel_size=[3] * 5,
        strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4,
        filters=[32, 64, 128, 256, 320],
        norm_name="instance",
    ).eval()

    def predict(volume: Any) -> Any:
        image = torch.from_numpy(np.clip(volume.array.astype(np.float32), -160, 240))[None, None]
        image = (image - image.mean()) / image.std()
        with torch.inference_mode():
            logits = sliding_window_inference(image, (patch,) * 3, 1, network, overlap=0.5, mode="gaussian")
        return volume.with_array(logits[0].argmax(dim=0).to(torch.uint8).numpy())

    return predict


def measure(name: str, file: str, options: str) -> None:
    """In a process of its own; one line of JSON."""
    told = json.loads(options)
    patch = told.pop("patch")
    predict = unet_predictor(patch) if name == UNET else random_predictor(name, **told)

    from sam2_3dmed.volume.volume import Volume

    started = time.perf_counter()
    predict(Volume.read(file)).write(Path(file).with_name("mask.nii.gz"))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--models", nargs="+", default=["nano", "tiny"])
    parser.add_argument("--image-size", type=int, help="without it 512, and 96 for nano")
    parser.add_argument("--direction", default="both")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    options = {"image_size": arguments.image_size, "direction": arguments.direction, "patch": arguments.patch}
    print(f"{os.cpu_count()} CPU cores, {arguments.threads or 'all'} threads, load {os.getloadavg()[0]:.1f}; {options}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ct.nii.gz"
        make_in_process(file, arguments.size, arguments.slices)
        found = {}
        for name in (UNET, *arguments.models):
            command = ("--measure", name, str(file), json.dumps(options))
            found[name] = one = run_alone(__file__, *command, threads=arguments.threads)
            print(f"{name:8} {one['seconds']:8.1f} s, peak {one['peak_mb']:6.0f} MB")
        for name in arguments.models:
            ratios = [found[UNET][key] / found[name][key] for key in ("seconds", "peak_mb")]
            print(f"{UNET} takes {ratios[0]:.1f} times the time of {name}, {ratios[1]:.1f} times the memory")


if __name__ == "__main__":
    main()
