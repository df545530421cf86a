"""The interface of an image encoder, and the encoders by name, as `model.encoder` of a recipe has them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import ClassVar, Self

from torch import Tensor, nn

from sam2_3dmed.errors import ConfigError, suggest

ENCODERS: Mapping[str, str] = {
    "hiera": "sam2_3dmed.encoders.hiera:HieraEncoder",
    "conv": "sam2_3dmed.encoders.conv:ConvEncoder",
}
"""Name -> where its class is. A class is imported when a recipe asks for it."""


class Encoder(nn.Module, ABC):
    """An encoder of single slices. A new one is a file with a subclass, and a line in `ENCODERS`."""

    channels: int
    """C, of every feature level."""
    has_sam2_weights: ClassVar[bool] = False
    """SAM2's checkpoints fit into it. All others start from scratch, or from a run."""
    lora_targets: ClassVar[str]
    """Regular expression for the names of the linear layers that LoRA adapts."""

    @classmethod
    @abstractmethod
    def build(cls, size: str, image_size: int, channels: int) -> Self:
        """Build the encoder with fresh weights, for H = W = `image_size` pixels.

        Each encoder has its own widths and depths for `size`, the recipe's `model.size`.
        """

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode standardised slices (N, 3, H, W).

        Returns:
            The levels at stride 4, 8 and 16, (N, C, ., .) each, channels last in memory.
        """

    def pre_fpn_features(self, pixels: Tensor) -> list[Tensor]:
        """The levels of `forward` before `lateral`, where a level has one: fewer numbers to keep."""
        levels: list[Tensor] = self(pixels)
        return levels

    def lateral(self, level: int) -> nn.Conv2d | None:
        """The 1 x 1 convolution from `pre_fpn_features` to a level (0: stride 4, 1: stride 8); None without one."""
        return None

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of every layer, from the pixels up."""

    @abstractmethod
    def last_stage(self) -> list[nn.Module]:
        """The modules that `training.encoder=last_stage` trains: the coarsest stage, and the maps from it to Z."""


def find_encoder(name: str) -> type[Encoder]:
    """The encoder of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENCODERS:
        raise ConfigError(f"model.encoder: no encoder {name!r}; {suggest(name, ENCODERS)}")
    encoder: type[Encoder] = resolve_name(ENCODERS[name])
    return encoder
