"""SRPP (paper 3.2, Eq. 1): the relative positions of slices along the body, from their content alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLACES_AT_ONCE = 256
"""Without gradients. With twelve slices of 32 x 32 places they take 25 MB instead of 100."""


class SliceRelativePositionPredictor(nn.Module):
    """A light Transformer over the slices at each position of the plane, then an MLP on slice pairs. Paper: 3.2, Eq. 1.

    The Transformer has no positional encoding along D, so that permuting the slices permutes P_pos and the answer does
    not leak (reading 2). Z is detached: L_srpp trains SRPP only, whether or not the encoder trains. The output flows on
    as context = Z + conv(Encoder(Z)), where conv starts at zero (reading 1).

    Args:
        share_context: false drops the context (the literal reading).
        causal: each slice attends only to itself and the slices before it (Table 9, "SRPP with memory").
    """

    def __init__(self, channels: int, *, share_context: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        layer = nn.TransformerEncoderLayer(
            channels, 4, 2 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.slice_encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(channels), enable_nested_tensor=False)
        first, second, last = nn.Linear(2 * channels, channels), nn.Linear(channels, channels), nn.Linear(channels, 1)
        self.pair_mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.to_context = zero_conv(channels) if share_context else None

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Context for the decoders (z if it is not shared), like z (B, D, C, h, w); and P_pos (B, D, D).

        P_pos[i, j] is the position of slice j minus the position of slice i, in slices along the body.
        """
        batch, depth, _, height, width = z.shape
        tokens = z.detach().permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h w, D, C)
        encoded = self._encode(tokens).unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)  # (B, D, C, h, w)

        slice_vectors = encoded.mean(dim=(-2, -1))
        first = slice_vectors.unsqueeze(2).expand(-1, -1, depth, -1)
        relative_position = self.pair_mlp(torch.cat([first, first.transpose(1, 2)], dim=-1)).squeeze(-1)

        if self.to_context is None:
            return z, relative_position
        shared = self.to_context(encoded.flatten(0, 1)).unflatten(0, (batch, depth))
        return z + shared, relative_position

    def _encode(self, tokens: Tensor) -> Tensor:
        """The Transformer over (N, D, C), whose N places know nothing of each other."""
        if torch.is_grad_enabled():
            return self._encode_places(tokens)
        return torch.cat([self._encode_places(some) for some in tokens.split(_PLACES_AT_ONCE)])

    def _encode_places(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 1:
            return self._encode_alone(tokens)
        if not self.causal:
            return self.slice_encoder(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], tokens.device, tokens.dtype)
        return self.slice_encoder(tokens, mask=mask, is_causal=True)

    def _encode_alone(self, tokens: Tensor) -> Tensor:
        """The same for D = 1: attention to a single token is its value, without queries and keys."""
        for layer in self.slice_encoder.layers:
            attention = layer.self_attn
            value = slice(2 * attention.embed_dim, None)
            values = F.linear(layer.norm1(tokens), attention.in_proj_weight[value], attention.in_proj_bias[value])
            tokens = tokens + attention.out_proj(values)
            tokens = tokens + layer.linear2(layer.activation(layer.linear1(layer.norm2(tokens))))
        return self.slice_encoder.norm(tokens)  # type: ignore[misc]


def zero_conv(channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that starts at zero."""
    conv = nn.Conv2d(channels, channels, kernel_size=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
