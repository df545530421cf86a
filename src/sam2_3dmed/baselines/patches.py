"""Training patches, cut around foreground or anywhere and augmented by MONAI, all from a seed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sam2_3dmed.baselines.cache import PatchCase
from sam2_3dmed.baselines.grid import ANISOTROPIC
from sam2_3dmed.baselines.recipe import PatchAugmentationConfig, PatchSpec
from sam2_3dmed.data.slabs import SampleKey

_MARGIN = 1.2
"""By this factor a patch is cut larger before it is rotated, so that little of it comes from outside."""


class Patches(NamedTuple):
    """Patches as a network takes them."""

    image: Tensor
    """(B, C, D, H, W) float32."""
    labels: Tensor
    """(B, D, H, W), as `LabelScheme.indexed` has it."""


class PatchDataset(Dataset[Patches]):
    """Patches of the training cases; the same key gives the same patch in any process.

    A share of `foreground_fraction` is centred on foreground: a class is drawn first, then a case with it, then a voxel
    of it. The others lie anywhere in the next case of a shuffled round. Outside of the volume the image is 0, its mean,
    and the label is background.
    """

    def __init__(
        self,
        cases: Sequence[PatchCase],
        spec: PatchSpec,
        augmentation: PatchAugmentationConfig,
        *,
        foreground_fraction: float,
        seed: int,
    ) -> None:
        self.cases = list(cases)
        self.patch = spec.patch
        self.augmentation = augmentation
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self._in_plane = spec.spacing_mm[0] > ANISOTROPIC * min(spec.spacing_mm)
        classes = sorted({k for case in self.cases for k, count in case.counts.items() if count})
        self._cases_with = {k: [case for case in self.cases if case.counts.get(k)] for k in classes}
        self._intensity = _intensity_transform(augmentation)

    def __getitem__(self, key: SampleKey) -> Patches:
        rng = np.random.default_rng([self.seed, *key])
        case, centre = self.draw(key, rng)
        moved = rng.random() < self.augmentation.affine
        size = [math.ceil(_MARGIN * n) for n in self.patch] if moved else self.patch
        arrays = [cut(array, centre, size).astype(np.float32) for array in (case.image, case.label[None])]
        state = np.random.RandomState(int(rng.integers(2**31)))
        if moved:
            arrays = self._moved(arrays, state)
        flips = tuple(axis + 1 for axis in range(3) if rng.random() < self.augmentation.flip)
        image, label = (torch.from_numpy(np.ascontiguousarray(np.flip(array, flips))) for array in arrays)
        changed = np.asarray(self._intensity.set_random_state(state=state)(image))
        return Patches(torch.as_tensor(changed, dtype=torch.float32)[None], label.round().to(torch.int32))

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[PatchCase, list[int]]:
        """The case of a patch and its central voxel."""
        if self._cases_with and rng.random() < self.foreground_fraction:
            k = list(self._cases_with)[rng.integers(len(self._cases_with))]
            case = self._cases_with[k][rng.integers(len(self._cases_with[k]))]
            middle = case.random_voxel(k, rng).tolist()
        else:
            turn, number = divmod(key.number, len(self.cases))
            order = np.random.default_rng([self.seed, key.epoch, turn, 1]).permutation(len(self.cases))
            case = self.cases[order[number]]
            middle = [int(rng.integers(size)) for size in case.label.shape]
        return case, [
            min(max(at, side // 2), size - side + side // 2) if size > side else size // 2
            for at, side, size in zip(middle, self.patch, case.label.shape, strict=True)
        ]

    def _moved(self, arrays: list[NDArray[np.float32]], state: np.random.RandomState) -> list[NDArray[np.float32]]:
        """Image and label, rotated and scaled about the centre, and cut to the patch."""
        from monai.transforms import Affine

        limit, scale = math.radians(self.augmentation.rotation_degrees), self.augmentation.scale
        angles = state.uniform(-limit, limit, 3)
        scales = np.repeat(state.uniform(1 - scale, 1 + scale), 3)
        if self._in_plane:
            angles[1:] = 0
            scales[0] = 1
        affine = Affine(
            rotate_params=angles.tolist(), scale_params=scales.tolist(), spatial_size=self.patch, image_only=True
        )
        return [
            np.asarray(affine(torch.from_numpy(array), mode=mode, padding_mode=padding))
            for array, mode, padding in zip(arrays, ("bilinear", "nearest"), ("border", "zeros"), strict=True)
        ]


def _intensity_transform(config: PatchAugmentationConfig) -> Any:
    from monai import transforms

    chance = config.intensity
    return transforms.Compose(
        [
            transforms.RandGaussianNoise(prob=config.noise, std=config.noise_std),
            transforms.RandScaleIntensity(factors=0.25, prob=chance),
            transforms.RandScaleIntensityFixedMean(factors=0.25, prob=chance, preserve_range=True),
            transforms.RandAdjustContrast(prob=chance, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


def cut(array: NDArray[Any], centre: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """The box of `size` around a voxel of (C, D, H, W), with zeros outside of the array."""
    starts = [at - side // 2 for at, side in zip(centre, size, strict=True)]
    inside = tuple(
        slice(max(start, 0), max(0, min(start + side, n)))
        for start, side, n in zip(starts, size, array.shape[1:], strict=True)
    )
    box = np.zeros((len(array), *size), dtype=array.dtype)
    filled = tuple(slice(part.start - start, part.stop - start) for part, start in zip(inside, starts, strict=True))
    box[(slice(None), *filled)] = array[(slice(None), *inside)]
    return box


def collate(patches: Sequence[Patches]) -> Patches:
    """One batch of several."""
    return Patches(*(torch.cat(parts) for parts in zip(*patches, strict=True)))
