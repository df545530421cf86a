"""Seconds to make a training slab: our augmentation, MONAI's 2D transforms and kornia's, side by side in one run.

    python benchmarks/input_pipeline.py [--slices 12] [--native 512] [--image-size 512] [--slabs 20]

All sides follow the paper's recipe, with one draw for all slices: flip, rotation within 25 degrees, shear up to 20,
size, noise, blur, each with its chance, labels with nearest neighbours; RandomMosaic is ours on every side. MONAI gets
slices as channels, and `RandAffined` makes affine map and size in one pass. kornia is measured if it is installed; it
is no dependency of ours. The sides take turns slab by slab; means, since what a slab costs depends on what is
drawn. "Reading" is a slab from the memory-mapped cache to float32, which comes before any side.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from math import radians
from pathlib import Path
from typing import Any

import numpy as np
import torch

Side = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""Image (D, H0, W0) and labels (D, H0, W0), and the number of the slab, to both at H x W."""

ROTATION, SHEAR, NOISE, BLUR, CHANCE, MOSAIC = 25.0, 20.0, 0.1, (0.1, 2.0), 0.5, 0.15


def ours(image_size: int) -> Side:
    from sam2_3dmed.config import AugmentationConfig
    from sam2_3dmed.data.augment import SlabAugmentation

    augmentation = SlabAugmentation(AugmentationConfig(), image_size)

    def make(image: torch.Tensor, labels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        moved, moved_labels = augmentation(image.unsqueeze(1), labels, np.random.default_rng(number))
        return moved.squeeze(1), moved_labels

    return make


def with_mosaic(side: Side) -> Side:
    from sam2_3dmed.data.augment import mosaic

    def make(image: torch.Tensor, labels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = side(image, labels, number)
        if np.random.default_rng(number).random() < MOSAIC:
            image, labels = mosaic(image.unsqueeze(1)).squeeze(1), mosaic(labels.unsqueeze(1)).squeeze(1)
        return image, labels

    return make


def monai(image_size: int) -> Side:
    from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised, RandGaussianSmoothd

    both = ("image", "label")
    transform = Compose(
        [
            RandFlipd(both, prob=0.5, spatial_axis=1),
            RandAffined(
                both,
                prob=1.0,
                rotate_range=radians(ROTATION),
                shear_range=[(-np.tan(radians(SHEAR)), np.tan(radians(SHEAR))), 0.0],
                spatial_size=(image_size, image_size),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                cache_grid=True,
            ),
            RandGaussianNoised("image", prob=CHANCE, std=NOISE, sample_std=True),
            RandGaussianSmoothd("image", prob=CHANCE, sigma_x=BLUR, sigma_y=BLUR),
        ]
    )

    def make(image: torch.Tensor, labels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        transform.set_random_state(number)
        made: Any = transform({"image": image, "label": labels.float()})
        return made["image"].as_tensor(), made["label"].as_tensor().int()

    return with_mosaic(make)


def kornia(image_size: int) -> Side:
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(degrees=ROTATION, shear=SHEAR, p=1.0),
        K.Resize((image_size, image_size)),
        K.RandomGaussianNoise(std=NOISE, p=CHANCE),
        K.RandomGaussianBlur((9, 9), BLUR, p=CHANCE),
        data_keys=["input", "mask"],
        same_on_batch=True,
        extra_args={"mask": {"resample": "nearest", "align_corners": None}},
    )

    def make(image: torch.Tensor, labels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(number)
        moved, moved_labels = transform(image.unsqueeze(1), labels.unsqueeze(1).float())
        return moved.squeeze(1), moved_labels.squeeze(1).int()

    return with_mosaic(make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=12, help="D")
    parser.add_argument("--native", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--slabs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sides = {"ours": ours(arguments.image_size), "MONAI": monai(arguments.image_size)}
    if find_spec("kornia"):
        sides["kornia"] = kornia(arguments.image_size)
    shape = (arguments.slices, arguments.native, arguments.native)
    print(f"slabs of {shape} to {arguments.image_size} pixels, one thread, load {os.getloadavg()[0]:.1f}")
    spent = dict.fromkeys(["reading", *sides], 0.0)
    with tempfile.TemporaryDirectory() as folder:
        image_file, label_file = Path(folder) / "image.npy", Path(folder) / "label.npy"
        rng = np.random.default_rng(0)
        np.save(image_file, rng.random((4 * arguments.slices, *shape[1:]), dtype=np.float32).astype(np.float16))
        np.save(label_file, rng.integers(0, 3, (4 * arguments.slices, *shape[1:]), dtype=np.uint8))
        for number in range(-1, arguments.slabs):  # the first one warms up
            start = int(rng.integers(3 * arguments.slices))
            began = time.process_time()
            image, labels = (
                torch.from_numpy(np.load(file, mmap_mode="r")[start : start + arguments.slices].astype(kind))
                for file, kind in ((image_file, np.float32), (label_file, np.int32))
            )
            spent["reading"] += (time.process_time() - began) * (number >= 0)
            for name, side in sides.items():
                began = time.process_time()
                made, made_labels = side(image, labels, max(number, 0))
                spent[name] += (time.process_time() - began) * (number >= 0)
                expected = (arguments.slices, arguments.image_size, arguments.image_size)
                if made.shape != expected or made_labels.shape != expected:
                    raise SystemExit(f"{name}: {tuple(made.shape)}, {tuple(made_labels.shape)}")
    for name, seconds in spent.items():
        milliseconds = 1000 * seconds / arguments.slabs
        print(f"  {name}: {milliseconds:.0f} ms of a processor a slab, {seconds / spent['ours']:.2f} times ours")


if __name__ == "__main__":
    main()
