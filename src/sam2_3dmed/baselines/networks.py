"""The network of each system: planned from the training cases by nnU-Net's rules, in plain form, and built.

Axes are (D, H, W) everywhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pkgutil import resolve_name
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sam2_3dmed.baselines.grid import Grid, Spacing, Three, common_spacing, resampled_shape, three
from sam2_3dmed.baselines.recipe import Intensities, PatchConfig, PatchSpec
from sam2_3dmed.errors import WeightsError

_FEWEST_VOXELS = 4
"""Of an axis after halving."""
_UNET_WIDEST = 320
_MEDNEXT: Mapping[str, tuple[Sequence[int], Sequence[int]]] = {
    "s": ((2, 2, 2, 2), (2, 2, 2, 2)),
    "b": ((2, 3, 4, 4), (2, 2, 2, 2)),
    "m": ((2, 3, 4, 4), (3, 4, 4, 4)),
    "l": ((3, 4, 8, 8), (3, 4, 8, 8)),
}
"""Expansion ratios and blocks of the encoder's levels; the bottleneck has those of the last level, the decoder those of
the encoder in reverse. As in MONAI's `create_mednext`, which takes no width, and small networks need one."""


@dataclass(frozen=True)
class Outline:
    """The common grid and the median case on it, from which networks are planned. patch: none to choose one."""

    spacing_mm: Spacing
    median_shape: Three
    size: str
    num_channels: int
    num_classes: int
    patch: Three | None
    regions: bool = False

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: the classes, and before them the background unless they are regions."""
        return self.num_classes + (not self.regions)

    def sized(self, full: int, small: int) -> int:
        """The one of two numbers that is for this size."""
        return full if self.size == "full" else small

    def choose_patch(self, multiples: Sequence[int], max_voxels: int) -> Three:
        """About a cube in mm, as large as allowed, but not larger than the median case; rounded up to multiples.

        At least two multiples along one axis: with a single voxel at its bottom, a network has nothing to normalise.
        """
        if self.patch is not None:
            return _rounded_up(self.patch, multiples)
        side_mm = max(size * spacing for size, spacing in zip(self.median_shape, self.spacing_mm, strict=True))
        smallest = tuple(multiples)
        while True:
            sizes = [max(1, round(side_mm / spacing)) for spacing in self.spacing_mm]
            patch = _rounded_up(np.minimum(sizes, self.median_shape), multiples)
            if patch == smallest:  # even if it is larger than allowed
                longest = int(np.argmax(self.median_shape))
                return three(np.where(np.arange(3) == longest, 2, 1) * np.array(patch))
            if prod(patch) <= max_voxels:
                return patch
            side_mm *= 0.97


def outline(
    config: PatchConfig,
    grids: Sequence[Grid],
    *,
    num_channels: int,
    num_classes: int,
    on_gpu: bool,
    regions: bool = False,
) -> Outline:
    """The outline of the training cases."""
    spacing = config.model.spacing_mm or common_spacing(grids)
    shapes = [resampled_shape(grid.shape, grid.spacing_mm, spacing) for grid in grids]
    size = config.model.size
    if size == "auto":
        size = "full" if on_gpu else "small"
    median = three(np.ceil(np.median(shapes, axis=0)))
    return Outline(spacing, median, size, num_channels, num_classes, config.model.patch, regions)


def intensities(kinds: Sequence[str], cases: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> list[Intensities]:
    """Mean and standard deviation of each channel in all cases' foreground; for `percentiles`, each volume has its own.

    kinds: how each channel is normalised. cases: images (D, C, H, W) in [0, 1], and their foreground (D, H, W) bool.
    """
    if "fixed" not in kinds:
        return [Intensities() for _ in kinds]
    sums = np.zeros((3, len(kinds)))  # of ones, of values, of their squares
    for image, foreground in cases:
        values = np.moveaxis(image, 1, -1)[foreground].astype(np.float64)
        sums += np.stack([np.full(len(kinds), len(values)), values.sum(axis=0), (values**2).sum(axis=0)])
    mean, square = sums[1:] / np.maximum(sums[0], 1)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return [
        Intensities(mean=float(m), std=float(s)) if kind == "fixed" else Intensities()
        for kind, m, s in zip(kinds, mean, std, strict=True)
    ]


def halvings(patch: Sequence[int], spacing_mm: Sequence[float], most: int = 5) -> tuple[list[Three], list[Three]]:
    """Strides of the levels of a U-Net below the first, and kernels of all levels, by nnU-Net's rule.

    Only axes of about the finest spacing are halved, and only if four voxels remain. An axis has kernels of 1 as long
    as its spacing is twice the finest or more. There are at least two levels below the first.
    """
    size, spacing = np.array(patch, dtype=float), np.array(spacing_mm)
    strides: list[Three] = []
    kernels: list[Three] = []
    smooth = np.zeros(3, dtype=bool)
    while True:
        smooth |= spacing < 2 * spacing.min()
        kernels.append(three(np.where(smooth, 3, 1)))
        able = size >= 2 * _FEWEST_VOXELS
        if able.any():
            able &= spacing < 2 * spacing[able].min()
            if able.sum() == 1 and size[able][0] < 3 * _FEWEST_VOXELS:
                able[:] = False
        if len(strides) == most or (len(strides) >= 2 and not able.any()):
            return strides, kernels
        if not able.any():
            able = size == size.max()
        strides.append(three(np.where(able, 2, 1)))
        size, spacing = np.where(able, size / 2, size), np.where(able, 2 * spacing, spacing)


def _rounded_up(sizes: Sequence[int] | NDArray[Any], multiples: Sequence[int]) -> Three:
    return three(-(-np.array(sizes) // multiples) * multiples)


def plan_network(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    """The patch that a system learns from, and the arguments of its network."""
    return _NETWORKS[config.system][1](config, outline)


def build(spec: PatchSpec) -> nn.Module:
    """A network with fresh weights; a WeightsError if the spec's arguments are not those of the network.

    In training it returns logits of several sizes, the finest first (see `all_logits`), else of the patch's size.
    """
    try:
        network: nn.Module = resolve_name(_NETWORKS[spec.system][0])(**spec.network)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"model.network: {spec.system} cannot be built: {error}") from None
    return network


def all_logits(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The logits of all sizes as a list, the finest first: DynUNet stacks them, the other networks list them."""
    if isinstance(output, Tensor):
        return list(output.unbind(1)) if output.ndim == 6 else [output]
    return list(output)


# The most voxels of a patch are as published (half as many for nnFormer where slices are thick), and for a CPU so few
# that a step takes seconds.


def _plan_unet(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    voxels = outline.sized(128**3, 48**3)
    strides, kernels = halvings(outline.choose_patch((1, 1, 1), voxels), outline.spacing_mm)
    width = config.model.width or outline.sized(32, 8)
    return outline.choose_patch(three(np.prod(strides, axis=0)), voxels), {
        "spatial_dims": 3,
        "in_channels": outline.num_channels,
        "out_channels": outline.num_outputs,
        "strides": [list(stride) for stride in [(1, 1, 1), *strides]],
        "upsample_kernel_size": [list(stride) for stride in strides],
        "kernel_size": [list(kernel) for kernel in kernels],
        "filters": [min(width * 2**level, _UNET_WIDEST) for level in range(len(kernels))],
        "deep_supervision": True,
        "deep_supr_num": len(strides) - 1,
    }


def _plan_mednext(config: PatchConfig, outline: Outline, variant: str) -> tuple[Three, dict[str, Any]]:
    ratios, blocks = _MEDNEXT[variant]
    return outline.choose_patch((16, 16, 16), outline.sized(128**3, 48**3)), {
        "spatial_dims": 3,
        "init_filters": outline.sized(32, 8),
        "in_channels": outline.num_channels,
        "out_channels": outline.num_outputs,
        "kernel_size": config.model.kernel,
        "deep_supervision": True,
        "use_residual_connection": True,
        "encoder_expansion_ratio": list(ratios),
        "bottleneck_expansion_ratio": ratios[-1],
        "decoder_expansion_ratio": list(reversed(ratios)),
        "blocks_down": list(blocks),
        "blocks_bottleneck": blocks[-1],
        "blocks_up": list(reversed(blocks)),
    }


def _plan_nnformer(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    # As published for CT with thick slices, 64 x 128 x 128 voxels, and for isotropic MR, 128 x 128 x 128.
    thick = outline.spacing_mm[0] >= 2 * min(outline.spacing_mm)
    stride = (2, 4, 4) if thick else (4, 4, 4)
    width = outline.sized(192 if thick else 96, 32)
    patch = outline.choose_patch([8 * step for step in stride], outline.sized(128**3, 64**3) // (1 + thick))
    return patch, {
        "num_channels": outline.num_channels,
        "num_outputs": outline.num_outputs,
        "patch": list(patch),
        "stride": list(stride),
        "width": width,
        "heads": [width // 32 * 2**stage for stage in range(4)],
        "windows": [4, 4, 8, 4],
    }


def _plan_universal(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    return outline.choose_patch((32, 32, 32), outline.sized(96**3, 32 * 32 * 64)), {
        "num_channels": outline.num_channels,
        "num_classes": outline.num_classes,
        "width": outline.sized(48, 12),
        "text": config.model.text is not None,
    }


_NETWORKS: Mapping[str, tuple[str, Callable[[PatchConfig, Outline], tuple[Three, dict[str, Any]]]]] = {
    "unet": ("monai.networks.nets:DynUNet", _plan_unet),
    **{
        f"mednext_{variant}": ("monai.networks.nets.mednext:MedNeXt", partial(_plan_mednext, variant=variant))
        for variant in _MEDNEXT
    },
    "nnformer": ("sam2_3dmed.baselines.nnformer:NNFormer", _plan_nnformer),
    "universal": ("sam2_3dmed.baselines.universal:Universal", _plan_universal),
}
"""From the system to the class of its network, imported when one is built, and to what plans it."""
