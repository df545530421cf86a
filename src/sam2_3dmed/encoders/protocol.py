"""The interface of an image encoder: pixels in, three feature levels out."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """An encoder of single slices. A new one is a file with a subclass, and a line in `registry.ENCODERS`.

    Attributes:
        channels: C, of every feature level.
        has_sam2_weights: SAM2's checkpoints fit into it. All others start from scratch, or from a run.
        lora_targets: regular expression for the names of the linear layers that LoRA adapts.
    """

    channels: int
    has_sam2_weights: ClassVar[bool] = False
    lora_targets: ClassVar[str]

    @classmethod
    @abstractmethod
    def build(cls, size: str, image_size: int, channels: int) -> Self:
        """Build the encoder with fresh weights.

        Args:
            size: `model.size` of the recipe; each encoder has its own widths and depths for it.
            image_size: H = W in pixels.
            channels: C.
        """

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode standardised slices.

        Args:
            pixels: (N, 3, H, W).

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
