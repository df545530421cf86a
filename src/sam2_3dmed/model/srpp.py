"""SRPP (paper 3.2, Eq. 1): where slices lie to each other along the body, from their content alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SliceRelativePositionPredictor(nn.Module):
    """A light Transformer over the slices at each place, then an MLP on slice pairs. Paper: 3.2, Eq. 1.

    The Transformer has no positional encoding along D, so permuting the slices permutes P_pos: nothing tells it the
    answer (reading 2). Z is detached: L_srpp teaches SRPP and nothing else, whether or not the encoder trains. Its
    output flows on as context = Z + conv(Encoder(Z)), conv starting at zero (reading 1).

    causal: each slice attends to itself and those before it only (Table 9, "SRPP with memory").
    """

    def __init__(
        self,
        channels: int,
        *,
        layers: int = 2,
        heads: int = 4,
        share_context: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        layer = nn.TransformerEncoderLayer(
            channels, heads, 2 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.slice_encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(channels), enable_nested_tensor=False
        )
        self.pair_mlp = nn.Sequential(
            nn.Linear(2 * channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, 1),
        )
        self.to_context = nn.Conv2d(channels, channels, kernel_size=1) if share_context else None
        if self.to_context is not None:
            nn.init.zeros_(self.to_context.weight)
            nn.init.zeros_(self.to_context.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Context for the decoders, and the relative positions.

        z: (B, D, C, h, w). Returns: context (B, D, C, h, w), z itself where it is not shared; P_pos (B, D, D), entry
        [i, j] the position of slice j minus that of slice i, in slices along the body.
        """
        batch, depth, _, height, width = z.shape
        places = z.detach().permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h w, D, C)
        encoded = self._encode(places).unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)  # (B, D, C, h, w)

        slice_vectors = encoded.mean(dim=(-2, -1))
        first = slice_vectors.unsqueeze(2).expand(-1, -1, depth, -1)
        relative_position = self.pair_mlp(torch.cat([first, first.transpose(1, 2)], dim=-1)).squeeze(-1)

        if self.to_context is None:
            return z, relative_position
        shared = self.to_context(encoded.flatten(0, 1)).unflatten(0, (batch, depth))
        return z + shared, relative_position

    def _encode(self, places: Tensor) -> Tensor:
        """The Transformer over (N, D, C)."""
        if places.shape[1] == 1:
            return self._encode_alone(places)
        if not self.causal:
            return self.slice_encoder(places)
        mask = nn.Transformer.generate_square_subsequent_mask(places.shape[1], places.device, places.dtype)
        return self.slice_encoder(places, mask=mask, is_causal=True)

    def _encode_alone(self, places: Tensor) -> Tensor:
        """The same for D = 1: who has only itself to attend to gets its own value, so there are no weights to find."""
        for layer in self.slice_encoder.layers:
            attention = layer.self_attn
            value = slice(2 * attention.embed_dim, None)
            values = F.linear(layer.norm1(places), attention.in_proj_weight[value], attention.in_proj_bias[value])
            places = places + attention.out_proj(values)
            places = places + layer.linear2(layer.activation(layer.linear1(layer.norm2(places))))
        norm = self.slice_encoder.norm
        assert norm is not None
        return norm(places)
