"""The network of each system, planned for the training cases and built from plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any

from torch import Tensor, nn

from sam2_3dmed.baselines.grid import Three
from sam2_3dmed.baselines.plan import Outline, halvings
from sam2_3dmed.baselines.recipe import PatchConfig, PatchSpec
from sam2_3dmed.errors import WeightsError

_UNET_WIDTH, _UNET_WIDEST = {"full": 32, "small": 8}, 320
_MEDNEXT_WIDTH = {"full": 32, "small": 8}
_NNFORMER_SMALL = 32
_UNIVERSAL_WIDTH = {"full": 48, "small": 12}

_MAX_VOXELS: Mapping[str, Mapping[str, int]] = {
    "unet": {"full": 128**3, "small": 48**3},
    "mednext": {"full": 128**3, "small": 48**3},
    "nnformer": {"full": 128**3, "small": 64**3},
    "universal": {"full": 96**3, "small": 32 * 32 * 64},
}
"""Of a patch: as published (half as many for nnFormer where slices are thick), and for a CPU so few that a step takes
seconds."""

_MEDNEXT: Mapping[str, Mapping[str, Any]] = {
    "s": {"encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2, "bottleneck_expansion_ratio": 2},
    "b": {
        "encoder_expansion_ratio": [2, 3, 4, 4],
        "decoder_expansion_ratio": [4, 4, 3, 2],
        "bottleneck_expansion_ratio": 4,
    },
    "m": {
        "encoder_expansion_ratio": [2, 3, 4, 4],
        "decoder_expansion_ratio": [4, 4, 3, 2],
        "bottleneck_expansion_ratio": 4,
        "blocks_down": [3, 4, 4, 4],
        "blocks_bottleneck": 4,
        "blocks_up": [4, 4, 4, 3],
    },
    "l": {
        "encoder_expansion_ratio": [3, 4, 8, 8],
        "decoder_expansion_ratio": [8, 8, 4, 3],
        "bottleneck_expansion_ratio": 8,
        "blocks_down": [3, 4, 8, 8],
        "blocks_bottleneck": 8,
        "blocks_up": [8, 8, 4, 3],
    },
}
"""The variants as in MONAI's `create_mednext`, which takes no width, and small networks need one."""


def plan_network(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    """The patch that a system learns from, and the arguments of its network."""
    return _PLANS[config.system](config, outline)


def build(spec: PatchSpec) -> nn.Module:
    """A network with fresh weights.

    In training it returns logits of several sizes, the finest first (see `all_logits`), else of the patch's size.

    Raises:
        WeightsError: the spec's arguments are not those of the network.
    """
    try:
        network: nn.Module = resolve_name(_CLASSES[spec.system])(**spec.network)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"model.network: {spec.system} cannot be built: {error}") from None
    return network


def all_logits(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The logits of all sizes as a list, the finest first: DynUNet stacks them, the other networks list them."""
    if isinstance(output, Tensor):
        return list(output.unbind(1)) if output.ndim == 6 else [output]
    return list(output)


def _plan_unet(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    voxels = _MAX_VOXELS["unet"][outline.size]
    strides, kernels = halvings(outline.choose_patch((1, 1, 1), voxels), outline.spacing_mm)
    d, h, w = (2 ** sum(stride[axis] == 2 for stride in strides) for axis in range(3))
    width = _UNET_WIDTH[outline.size]
    return outline.choose_patch((d, h, w), voxels), {
        "spatial_dims": 3,
        "in_channels": outline.num_channels,
        "out_channels": outline.num_classes + 1,
        "strides": [list(stride) for stride in [(1, 1, 1), *strides]],
        "upsample_kernel_size": [list(stride) for stride in strides],
        "kernel_size": [list(kernel) for kernel in kernels],
        "filters": [min(width * 2**level, _UNET_WIDEST) for level in range(len(kernels))],
        "deep_supervision": True,
        "deep_supr_num": len(strides) - 1,
    }


def _plan_mednext(config: PatchConfig, outline: Outline, variant: str) -> tuple[Three, dict[str, Any]]:
    return outline.choose_patch((16, 16, 16), _MAX_VOXELS["mednext"][outline.size]), {
        "spatial_dims": 3,
        "init_filters": _MEDNEXT_WIDTH[outline.size],
        "in_channels": outline.num_channels,
        "out_channels": outline.num_classes + 1,
        "kernel_size": config.model.kernel,
        "deep_supervision": True,
        "use_residual_connection": True,
        **_MEDNEXT[variant],
    }


def _plan_nnformer(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    # As published for CT with thick slices, 64 x 128 x 128 voxels, and for isotropic MR, 128 x 128 x 128.
    thick = outline.spacing_mm[0] >= 2 * min(outline.spacing_mm)
    stride = (2, 4, 4) if thick else (4, 4, 4)
    width = _NNFORMER_SMALL if outline.size == "small" else 192 if thick else 96
    patch = outline.choose_patch([8 * step for step in stride], _MAX_VOXELS["nnformer"][outline.size] // (1 + thick))
    return patch, {
        "num_channels": outline.num_channels,
        "num_outputs": outline.num_classes + 1,
        "patch": list(patch),
        "stride": list(stride),
        "width": width,
        "heads": [width // 32 * 2**stage for stage in range(4)],
        "windows": [4, 4, 8, 4],
    }


def _plan_universal(config: PatchConfig, outline: Outline) -> tuple[Three, dict[str, Any]]:
    return outline.choose_patch((32, 32, 32), _MAX_VOXELS["universal"][outline.size]), {
        "num_channels": outline.num_channels,
        "num_classes": outline.num_classes,
        "width": _UNIVERSAL_WIDTH[outline.size],
        "text": config.model.text is not None,
    }


_PLANS: Mapping[str, Callable[[PatchConfig, Outline], tuple[Three, dict[str, Any]]]] = {
    "unet": _plan_unet,
    **{f"mednext_{variant}": partial(_plan_mednext, variant=variant) for variant in _MEDNEXT},
    "nnformer": _plan_nnformer,
    "universal": _plan_universal,
}
_CLASSES: Mapping[str, str] = {
    "unet": "monai.networks.nets:DynUNet",
    **dict.fromkeys((f"mednext_{variant}" for variant in _MEDNEXT), "monai.networks.nets.mednext:MedNeXt"),
    "nnformer": "sam2_3dmed.baselines.nnformer:NNFormer",
    "universal": "sam2_3dmed.baselines.universal:Universal",
}
"""From the system to the class of its network, imported when one is built."""
