"""SAM2's mask decoder with a mask token for each of K classes (reading 4); without a prompt, or with a box a class."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Masks(NamedTuple):
    """What the mask decoder says of a slice."""

    logits: Tensor
    """(B, K, 4h, 4w)."""
    class_tokens: Tensor
    """(B, K, C)."""
    confidence: Tensor | None
    """(B,), the IoU that SAM2 predicts for its single mask, which is one for all classes; None without its head."""


class ClassHypernetworks(nn.Module):
    """For each class its own three-layer MLP from mask token to the weights of its mask; all classes at once.

    channels: C in; out_channels: width of the upscaled features.
    """

    def __init__(self, num_classes: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [(channels, channels), (channels, channels), (channels, out_channels)]
        self.weights = nn.ParameterList(torch.empty(num_classes, i, o) for i, o in widths)
        self.biases = nn.ParameterList(torch.zeros(num_classes, 1, o) for _, o in widths)
        for weight in self.weights:
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, K, C). Returns: (B, K, out_channels)."""
        hidden = tokens.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, torch.relu(hidden) if layer else hidden, weight)
        return hidden.transpose(0, 1)


class MaskDecoder(nn.Module):
    """Tokens and image attend to each other; each class token then makes its mask at stride 4.

    All of SAM2's tokens stay in the sequence, since they attend to each other. Class 1 is SAM2's single-mask token,
    classes 2..K are added tokens; only class tokens make masks. Names are upstream's where the part is.

    iou_prediction_head: SAM2's, for who wants to know how sure the masks are. takes_boxes: whether it has the
    embeddings of corners.
    """

    NUM_SAM2_TOKENS = 6
    """Object score, IoU, and the single mask's and three multi-mask tokens."""

    def __init__(
        self,
        *,
        transformer: nn.Module,
        upscale_layer_norm: nn.Module,
        positional_embedding: nn.Module,
        channels: int,
        num_classes: int,
        iou_prediction_head: nn.Module | None = None,
        takes_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.upscale_conv1 = nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = upscale_layer_norm
        self.upscale_conv2 = nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        self.conv_s0 = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, kernel_size=1)
        self.obj_score_token = nn.Embedding(1, channels)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(4, channels)
        self.class_tokens = nn.Embedding(num_classes - 1, channels) if num_classes > 1 else None
        self.class_hypernetworks = ClassHypernetworks(num_classes, channels, channels // 8)
        self.no_mask_embed = nn.Embedding(1, channels)
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.point_embed = nn.Embedding(4, channels) if takes_boxes else None
        # SAM2 has one object at a time, which is there; whose a corner is and who is absent, only these can say.
        self.class_box_embed = nn.Embedding(num_classes - 1, channels) if takes_boxes and num_classes > 1 else None
        self.class_absent_embed = nn.Embedding(1, channels) if takes_boxes else None
        self.shared_image_embedding = positional_embedding
        self.iou_prediction_head = iou_prediction_head

    def forward(self, features: Tensor, stride8: Tensor, stride4: Tensor, boxes: Tensor | None = None) -> Masks:
        """Masks of one slice.

        features: (B, C, h, w), after memory attention; stride8: (B, C/4, 2h, 2w); stride4: (B, C/8, 4h, 4w). boxes: see
        `boxes_around`, (B, K, 4), for a decoder that takes them; none: of no class.
        """
        batch, channels, height, width = features.shape
        tokens, image = self.transformer(
            point_embeddings=self._tokens(batch, boxes).unsqueeze(1),
            image_embeddings=features + self.no_mask_embed.weight.view(1, -1, 1, 1),
            image_positional_embeddings=self._grid_encoding(height, width).expand(batch, -1, -1, -1),
            attention_similarity=None,
        )
        tokens = tokens.squeeze(1)
        class_tokens = self._class_tokens(tokens)
        image = image.transpose(2, 3).reshape(batch, channels, height, width)
        upscaled = self.activation(self.upscale_layer_norm(self.upscale_conv1(image) + stride8))
        upscaled = self.activation(self.upscale_conv2(upscaled) + stride4)
        logits = torch.einsum("bkc,bchw->bkhw", self.class_hypernetworks(class_tokens), upscaled)
        head = self.iou_prediction_head
        return Masks(logits, class_tokens, None if head is None else head(tokens[:, 1])[:, 0].detach())

    def _tokens(self, batch: int, boxes: Tensor | None) -> Tensor:
        """(B, N, C): SAM2's tokens, the added classes', and the prompt."""
        added = [self.class_tokens.weight] if self.class_tokens is not None else []
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight, *added])
        return torch.cat([own.expand(batch, -1, -1), self._prompt(batch, boxes)], dim=1)

    def _prompt(self, batch: int, boxes: Tensor | None) -> Tensor:
        """(B, P, C): two corners for each class and a padding point, as SAM2 has it; without boxes two of the latter.

        Where nobody looked for a class, padding points are its corners, so that all slices have as many tokens.
        """
        nothing = self.not_a_point_embed.weight
        if self.point_embed is None or self.class_absent_embed is None:
            return nothing.expand(batch, 2, -1)
        if boxes is None:
            return nothing.expand(batch, 2 * self.class_hypernetworks.num_classes + 1, -1)
        corners = boxes.unflatten(-1, (2, 2))  # (B, K, 2, 2), x and y of each
        there = torch.where(corners.isfinite(), corners, 0)
        points = self.shared_image_embedding(there) + self.point_embed.weight[2:]
        points = torch.where(corners[..., :1].isinf(), self.class_absent_embed.weight, points)
        if self.class_box_embed is not None:
            points = points + F.pad(self.class_box_embed.weight, (0, 0, 1, 0)).unsqueeze(1)
        points = torch.where(corners[..., :1].isnan(), nothing, points)
        return torch.cat([points.flatten(1, 2), nothing.expand(batch, 1, -1)], dim=1)

    def _class_tokens(self, tokens: Tensor) -> Tensor:
        first = tokens[:, 2:3]
        if self.class_tokens is None:
            return first
        added = tokens[:, self.NUM_SAM2_TOKENS : self.NUM_SAM2_TOKENS + self.class_tokens.num_embeddings]
        return torch.cat([first, added], dim=1)

    def _grid_encoding(self, height: int, width: int) -> Tensor:
        """(1, C, h, w): SAM2's random Fourier code of each place."""
        device = self.no_mask_embed.weight.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        return self.shared_image_embedding(grid).permute(2, 0, 1).unsqueeze(0)
