"""SRPP (paper 3.2, Eq. 1): where slices lie to each other along the body, from their content alone."""

import torch
from torch import Tensor, nn


class SliceRelativePositionPredictor(nn.Module):
    """A light Transformer over the slices at each place, then an MLP on slice pairs. Paper: 3.2, Eq. 1.

    The Transformer has no positional encoding along D, so permuting the slices permutes P_pos: nothing tells it the
    answer
    (reading 2). Z is detached: L_srpp teaches SRPP and nothing else, whether or not the encoder trains. Its output
    flows on as context = Z + conv(Encoder(Z)), conv starting at zero (reading 1).

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
        mask = (
            nn.Transformer.generate_square_subsequent_mask(depth, places.device, places.dtype) if self.causal else None
        )
        encoded = self.slice_encoder(places, mask=mask, is_causal=self.causal)
        encoded = encoded.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)  # (B, D, C, h, w)

        slice_vectors = encoded.mean(dim=(-2, -1))
        first = slice_vectors.unsqueeze(2).expand(-1, -1, depth, -1)
        relative_position = self.pair_mlp(torch.cat([first, first.transpose(1, 2)], dim=-1)).squeeze(-1)

        if self.to_context is None:
            return z, relative_position
        shared = self.to_context(encoded.flatten(0, 1)).unflatten(0, (batch, depth))
        return z + shared, relative_position
