"""A head through which an encoder learns from labels before the decoders join: a step costs a fraction of theirs.

Not in the paper, whose encoder is pre-trained; for training from scratch (docs/auto_preset.md has the figures).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.model.encoder import Features

_WIDTH = 32
_RARE = -3.0  # foreground is: the logits start where a probability of 5% lies


class EncoderHead(nn.Module):
    """Logits of every class from the sum of the three feature levels, a slice at a time; used in training only.

    channels: C of the features. num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(channels, _WIDTH, 1) for _ in Features._fields)
        self.classes = nn.Conv2d(_WIDTH, num_classes, 3, padding=1)
        nn.init.constant_(self.classes.bias, _RARE)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """Features of windows -> (B, K, D, 4h, 4w) logits at stride 4."""
        batch, depth = features.stride4.shape[:2]
        size = features.stride4.shape[-2:]
        levels = [
            F.interpolate(project(level.flatten(0, 1)), size, mode="bilinear", align_corners=False)
            for project, level in zip(self.levels, features, strict=True)
        ]
        logits = self.classes(F.gelu(sum(levels[1:], start=levels[0])))
        found: Tensor = logits.unflatten(0, (batch, depth)).transpose(1, 2)
        return found
