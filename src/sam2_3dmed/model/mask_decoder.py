"""SAM2's mask decoder with a mask token for each of K classes (reading 4), without prompts or with a box a class."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sam2_3dmed.model.prompt_maps import PromptMaps
from sam2_3dmed.model.prompts import ABSENT, NOTHING, Prompts
from sam2_3dmed.model.slice_mixing import Chunk, SliceMixer, SliceMixers

MIXERS = 2
"""Slice mixers after each upscaling, one after the other."""


class Upscaled(NamedTuple):
    """A slice between the two upscalings. With slice mixing, slices exchange features from here on."""

    stride8: Tensor  # (B, C/4, 2h, 2w), after the first upscaling
    stride4: Tensor  # (B, C/8, 4h, 4w), the encoder's part of the second one
    class_weights: Tensor  # (B, K, C/8), by which each class weighs the channels after the second one


class Masks(NamedTuple):
    """The masks of a slice, without slice mixing."""

    logits: Tensor  # (B, K, 4h, 4w)
    class_tokens: Tensor  # (B, K, C)
    confidence: Tensor | None  # (B,), the IoU that SAM2 predicts for its single mask; None without its head
    upscaled: Upscaled


class ClassHypernetworks(nn.Module):
    """A three-layer MLP for each class, from its mask token to the weights of its mask; all classes at once."""

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
        """(B, K, C) -> (B, K, out_channels)."""
        hidden = tokens.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, torch.relu(hidden) if layer else hidden, weight)
        return hidden.transpose(0, 1)


class MaskDecoder(nn.Module):
    """Tokens and image attend to each other; then each class token makes its mask at stride 4.

    All of SAM2's tokens stay in the sequence, since they attend to each other. Class 1 is SAM2's single-mask token, and
    classes 2..K are added tokens. Only class tokens make masks. Upstream's parts have upstream's names.

    Args:
        sam2: upstream's configuration, `build.sam2_config`.
        predicts_iou: whether it has SAM2's head for the confidence of masks.
        takes_points: whether it has embeddings of points and corners.
        takes_masks: whether it has layers for masks as prompts, for one class.
        prompt_maps: whether prompts are also drawn as maps, for one class.
        slice_mixing: whether it has mixers for `mixed_logits`.
    """

    NUM_SAM2_TOKENS = 6  # object score, IoU, and the single mask's and three multi-mask tokens

    def __init__(
        self,
        sam2: Any,
        num_classes: int,
        *,
        predicts_iou: bool = False,
        takes_points: bool = False,
        takes_masks: bool = False,
        prompt_maps: bool = False,
        slice_mixing: bool = False,
    ) -> None:
        from transformers.models.sam2_video import modeling_sam2_video as upstream

        super().__init__()
        config = sam2.mask_decoder_config
        channels, num_masks = config.hidden_size, config.num_multimask_outputs + 1
        self.transformer = upstream.Sam2VideoTwoWayTransformer(config)
        self.shared_image_embedding = upstream.Sam2VideoPositionalEmbedding(sam2.prompt_encoder_config)
        self.upscale_conv1 = nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = upstream.Sam2VideoLayerNorm(channels // 4, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2)
        self.conv_s0 = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, kernel_size=1)
        self.obj_score_token = nn.Embedding(1, channels)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(num_masks, channels)
        self.class_tokens = nn.Embedding(num_classes - 1, channels) if num_classes > 1 else None
        self.class_hypernetworks = ClassHypernetworks(num_classes, channels, channels // 8)
        self.no_mask_embed = nn.Embedding(1, channels)
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.point_embed = nn.Embedding(4, channels) if takes_points else None
        # SAM2 has one object at a time, which is present. These tell classes apart, and absent from present ones.
        self.class_box_embed = nn.Embedding(num_classes - 1, channels) if takes_points and num_classes > 1 else None
        self.class_absent_embed = nn.Embedding(1, channels) if takes_points else None
        self.mask_embed = upstream.Sam2VideoMaskEmbedding(sam2.prompt_encoder_config) if takes_masks else None
        self.prompt_maps = PromptMaps(channels) if prompt_maps else None
        self.iou_prediction_head = None
        if predicts_iou:
            widths = channels, config.iou_head_hidden_dim, num_masks, config.iou_head_depth
            self.iou_prediction_head = upstream.Sam2VideoFeedForward(*widths, sigmoid_output=True)
        if slice_mixing:
            self.mixer8, self.mixer4 = (
                SliceMixers(*(SliceMixer(width) for _ in range(MIXERS))) for width in (channels // 4, channels // 8)
            )

    def forward(self, features: Tensor, stride8: Tensor, stride4: Tensor, prompts: Prompts | None = None) -> Masks:
        """The masks of one slice, from (B, C, h, w) after memory attention, (B, C/4, 2h, 2w) and (B, C/8, 4h, 4w).

        The prompts have points (B, K, P, 3) and perhaps masks (B, K, 4h, 4w); None: no prompt for any class.
        """
        batch, channels, height, width = features.shape
        if self.prompt_maps is not None and prompts is not None:
            added = self.prompt_maps(prompts, height, width)
            features, stride8, stride4 = (x + y for x, y in zip((features, stride8, stride4), added, strict=True))
        tokens, image = self.transformer(
            point_embeddings=self._tokens(batch, prompts).unsqueeze(1),
            image_embeddings=features + self._dense_prompt(prompts),
            image_positional_embeddings=self._grid_encoding(height, width).expand(batch, -1, -1, -1),
            attention_similarity=None,
        )
        tokens = tokens.squeeze(1)
        class_tokens = self._class_tokens(tokens)
        image = image.transpose(2, 3).reshape(batch, channels, height, width)
        coarse = F.gelu(self.upscale_layer_norm(self.upscale_conv1(image) + stride8))
        weights, head = self.class_hypernetworks(class_tokens), self.iou_prediction_head
        logits = torch.einsum("bkc,bchw->bkhw", weights, self._upscaled_twice(coarse, stride4))
        confidence = None if head is None else head(tokens[:, 1])[:, 0].detach()
        return Masks(logits, class_tokens, confidence, Upscaled(coarse, stride4, weights))

    def mixed_logits(self, stack: Upscaled) -> Tensor:
        """The logits (B, D, K, 4h, 4w) of slices (B, D, ...) that exchange features."""
        fine = self.mixer4(self._upscaled_twice(self.mixer8(stack.stride8), stack.stride4))
        return torch.einsum("bdkc,bdchw->bdkhw", stack.class_weights, fine)

    def mixed_stream(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """As `mixed_logits`, for a stack in chunks. An `Upscaled` begins each of them; its logits come last."""
        coarse = self.mixer8.stream(chunks)
        fine = self.mixer4.stream([self._upscaled_twice(x, stride4), *rest] for x, stride4, *rest in coarse)
        for x, weights, *rest in fine:
            yield [*rest, torch.einsum("bdkc,bdchw->bdkhw", weights, x)]

    def _upscaled_twice(self, coarse: Tensor, stride4: Tensor) -> Tensor:
        """The second upscaling, (..., C/4, 2h, 2w) -> (..., C/8, 4h, 4w), of a slice or of a stack."""
        return F.gelu(self.upscale_conv2(coarse.flatten(0, -4)).view(stride4.shape) + stride4)

    def _tokens(self, batch: int, prompts: Prompts | None) -> Tensor:
        """(B, N, C): SAM2's tokens, the tokens of classes 2..K, and the prompt."""
        added = [self.class_tokens.weight] if self.class_tokens is not None else []
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight, *added])
        return torch.cat([own.expand(batch, -1, -1), self._prompt(batch, prompts)], dim=1)

    def _prompt(self, batch: int, prompts: Prompts | None) -> Tensor:
        """(B, K P + 1, C): the points of each class and a padding point, as in SAM2; without prompts two of these.

        A point of the kind NOTHING is a padding point, so that all slices have the same number of tokens.
        """
        padding = self.not_a_point_embed.weight
        if self.point_embed is None or self.class_absent_embed is None:
            return padding.expand(batch, 2, -1)
        if prompts is None:
            return padding.expand(batch, 2 * self.class_hypernetworks.num_classes + 1, -1)
        places, kinds = prompts.points[..., :2], prompts.points[..., 2].long()
        embedded = self.shared_image_embedding(places) + self.point_embed(kinds.clamp(0, 3))
        embedded = torch.where((kinds == ABSENT).unsqueeze(-1), self.class_absent_embed.weight, embedded)
        if self.class_box_embed is not None:
            embedded = embedded + F.pad(self.class_box_embed.weight, (0, 0, 1, 0)).unsqueeze(1)
        embedded = torch.where((kinds == NOTHING).unsqueeze(-1), padding, embedded)
        return torch.cat([embedded.flatten(1, 2), padding.expand(batch, 1, -1)], dim=1)

    def _dense_prompt(self, prompts: Prompts | None) -> Tensor:
        """What a mask adds to the features, (B, C, h, w); (1, C, 1, 1) without one.

        It has the scale that SAM2 gives to masks in its memory: -10 outside, 10 inside.
        """
        without = self.no_mask_embed.weight.view(1, -1, 1, 1)
        if self.mask_embed is None or prompts is None or prompts.masks is None:
            return without
        logits = prompts.masks * 20 - 10
        given = logits.isfinite()
        embedded = self.mask_embed(torch.where(given, logits, 0))
        return torch.where(given.all(-1, keepdim=True).all(-2, keepdim=True), embedded, without)

    def _class_tokens(self, tokens: Tensor) -> Tensor:
        first = tokens[:, 2:3]
        if self.class_tokens is None:
            return first
        added = tokens[:, self.NUM_SAM2_TOKENS : self.NUM_SAM2_TOKENS + self.class_tokens.num_embeddings]
        return torch.cat([first, added], dim=1)

    def _grid_encoding(self, height: int, width: int) -> Tensor:
        """(1, C, h, w): SAM2's random Fourier encoding of each position."""
        device = self.no_mask_embed.weight.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        return self.shared_image_embedding(grid).permute(2, 0, 1).unsqueeze(0)


def upsample(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) -> (..., H, W) float32, also under autocast: `F.interpolate`, bilinear, corners not aligned.

    As two matrix products: the backward pass of `F.interpolate` takes twenty times as long on a CPU. On a GPU the order
    of its sums is not fixed, so that the last digits of a run differ from one time to the next.
    """
    height, width = planes.shape[-2:]
    with torch.autocast(planes.device.type, enabled=False):
        rows, columns = (_bilinear(*sizes, planes.device) for sizes in ((height, size[0]), (width, size[1])))
        return rows @ (planes.float() @ columns.T)


@lru_cache(maxsize=32)
def _bilinear(size: int, target: int, device: torch.device) -> Tensor:
    """(target, size): the weight of each of `size` pixels in each of `target`."""
    # The cached tensor outlives the call, so it must be no inference tensor and no tensor without content.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        unit = torch.eye(size, device=device).unsqueeze(0)
        return F.interpolate(unit, target, mode="linear", align_corners=False).squeeze(0).T.contiguous()
