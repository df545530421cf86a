"""A convolutional encoder for training from scratch: ConvNeXt (Liu et al. 2022, arXiv 2201.03545) and an FPN."""

from typing import Any, Self

from torch import Tensor, nn

from sam2_3dmed.encoders.precision import in_float32
from sam2_3dmed.encoders.registry import Encoder

CONV_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "nano": ((2, 2, 6, 2), (24, 48, 96, 192)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base_plus": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
"""Blocks and channels of the four stages: ConvNeXt-T, -S, -B and -L; nano has ConvNeXt-A's depth at half its width."""


class ConvEncoder(Encoder):
    """ConvNeXt's four stages at strides 4 to 32, and a feature pyramid (Lin et al. 2017) from the top down.

    `upstream` is a `ConvNextModel`, whose patch embedding and stages are taken over.
    """

    lora_targets = r".*\.pwconv[12]"

    def __init__(self, upstream: Any, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.embeddings = upstream.embeddings
        self.stages = upstream.encoder.stages
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels)) for width in upstream.config.hidden_sizes
        )

    @classmethod
    def build(cls, size: str, image_size: int, channels: int) -> Self:
        from transformers import ConvNextConfig, ConvNextModel

        blocks, widths = CONV_SIZES[size]
        config = ConvNextConfig(
            depths=list(blocks), hidden_sizes=list(widths), image_size=image_size, layer_scale_init_value=0.0
        )
        return cls(ConvNextModel(config), channels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        hidden = self.embeddings(pixels)
        stages = []
        for stage in self.stages:
            hidden = stage(hidden)
            stages.append(hidden.permute(0, 2, 3, 1))
        return [level.permute(0, 3, 1, 2) for level in in_float32(self._pyramid, *stages)]

    def _pyramid(self, *stages: Tensor) -> list[Tensor]:
        """The levels at stride 4, 8 and 16, (N, ., ., C), from the stages, (N, ., ., width)."""
        levels: list[Tensor] = []  # coarsest first
        for lateral, stage in zip(reversed(self.laterals), reversed(stages), strict=True):
            level = lateral(stage)
            if levels:
                level = level + levels[-1].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            levels.append(level)
        return levels[:0:-1]

    def layers(self) -> list[list[nn.Parameter]]:
        layers = [list(self.embeddings.parameters())]
        for stage in self.stages:
            first, *others = stage.layers
            layers.append([*stage.downsampling_layer.parameters(), *first.parameters()])
            layers += [list(block.parameters()) for block in others]
        return [*layers, list(self.laterals.parameters())]

    def last_stage(self) -> list[nn.Module]:
        return [self.stages[-1], *self.laterals[-2:]]
