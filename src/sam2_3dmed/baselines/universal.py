"""The CLIP-driven Universal Model (Liu et al., ICCV 2023): MONAI's SwinUNETR with a head for each class's name.

The name of a class, as an embedding, and the volume's features together make the weights of three small convolutions,
which then find that class; all classes share everything else. Letters: B batch, K classes.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.errors import WeightsError

TEXT_SIZE = 512
"""Of CLIP's embeddings."""
PROMPT = "A computerized tomography of a {}."
"""The sentence that the Universal Model's authors found best."""
_CONDITION = 256
_WIDTHS = (8, 8, 8, 1)
"""Channels before, between and after a class's convolutions."""


class TextDrivenHead(nn.Module):
    """Computes for each class the weights of its own convolutions 8-8-8-1, and applies them to the features.

    width, deep_width: channels of the features at full size, and of the deepest ones. text: with a buffer for
    embeddings of the classes' names (K, 512); else embeddings are learnt.
    """

    def __init__(self, width: int, deep_width: int, num_classes: int, *, text: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.GroupNorm(_groups(width), width), nn.ReLU(), nn.Conv3d(width, _WIDTHS[0], 1))
        self.pool = nn.Sequential(nn.GroupNorm(_groups(deep_width), deep_width), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
        self.volume_condition = nn.Linear(deep_width, _CONDITION)
        self.text: Tensor | None
        self.register_buffer("text", torch.zeros(num_classes, TEXT_SIZE) if text else None)
        self.class_condition = nn.Linear(TEXT_SIZE, _CONDITION) if text else nn.Embedding(num_classes, _CONDITION)
        self.sizes = [n for a, b in pairwise(_WIDTHS) for n in (a * b, b)]  # weights and biases, in turn
        self.controller = nn.Linear(2 * _CONDITION, sum(self.sizes))

    def forward(self, features: Tensor, deep: Tensor) -> Tensor:
        """features: (B, width, D, H, W); deep: (B, deep_width, ...). Returns: logits (B, K, D, H, W)."""
        volumes = self.volume_condition(self.pool(deep).flatten(1))
        classes = self.class_condition.weight if self.text is None else F.relu(self.class_condition(self.text))
        pairs = torch.cat(
            [volumes.unsqueeze(1).expand(-1, len(classes), -1), classes.expand(len(volumes), -1, -1)], dim=-1
        )
        parameters = self.controller(pairs).flatten(0, 1)  # (B K, 153)
        # Every class of every volume has convolutions of its own: as groups of a single one.
        x = self.reduce(features).repeat_interleave(len(classes), dim=0).flatten(0, 1).unsqueeze(0)
        count = len(parameters)
        for number, (inner, outer) in enumerate(pairwise(_WIDTHS)):
            weights, biases = parameters.split(self.sizes, dim=1)[2 * number : 2 * number + 2]
            x = F.conv3d(x, weights.reshape(count * outer, inner, 1, 1, 1), biases.flatten(), groups=count)
            if number < len(_WIDTHS) - 2:
                x = F.relu(x)
        return x.view(len(volumes), len(classes), *features.shape[2:])


class Universal(nn.Module):
    """SwinUNETR with `TextDrivenHead` in the place of its last convolution.

    width: SwinUNETR's feature_size, a multiple of 12; the deepest features have 16 times as many channels.
    """

    def __init__(self, num_channels: int, num_classes: int, width: int, *, text: bool) -> None:
        from monai.networks.nets import SwinUNETR

        super().__init__()
        self.backbone = SwinUNETR(num_channels, 1, feature_size=width)
        self.backbone.out = nn.Identity()
        self.backbone.encoder10.register_forward_hook(self._note)
        self.head = TextDrivenHead(width, 16 * width, num_classes, text=text)
        self._deep: Tensor | None = None

    def _note(self, module: nn.Module, arguments: Any, deep: Tensor) -> None:
        self._deep = deep

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, D, H, W), multiples of 32 -> logits (B, K, D, H, W)."""
        features = self.backbone(image)
        deep, self._deep = self._deep, None
        assert deep is not None
        logits: Tensor = self.head(features, deep)
        return logits


def _groups(width: int) -> int:
    """16 as published, or as many as small widths allow."""
    return 16 if width % 16 == 0 else 4


def embed_names(folder: Path, names: Sequence[str]) -> Tensor:
    """(K, 512), each of length 1, by the text encoder of a CLIP model in a Hugging Face folder.

    Raises: WeightsError if there is no such model, or its embeddings are of another size.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; model.text expects a CLIP model as Hugging Face saves it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
        with torch.inference_mode():
            tokens = tokenizer([PROMPT.format(name) for name in names], padding=True, return_tensors="pt")
            embeddings: Tensor = model(**tokens).text_embeds.float().clone()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{folder}: no CLIP model: {str(error).splitlines()[0]}") from None
    if embeddings.shape[1] != TEXT_SIZE:
        raise WeightsError(f"{folder}: its embeddings have {embeddings.shape[1]} numbers, and {TEXT_SIZE} are expected")
    return torch.nn.functional.normalize(embeddings, dim=1)
