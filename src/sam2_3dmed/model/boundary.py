"""BD (paper 3.3): a second slice decoder, for boundaries, with BD-Fusion between its attention and its masks."""

from torch import Tensor, nn

from sam2_3dmed.encoders.image_encoder import Features
from sam2_3dmed.model.memory_attention import attend
from sam2_3dmed.model.memory_bank import Bank
from sam2_3dmed.model.prompts import Prompts
from sam2_3dmed.model.slice_decoder import DecodedSlice, SliceDecoder


class BoundaryFusion(nn.Module):
    """Cross-attention of boundary features to the raw features. Paper: 3.3, Eqs. 3 and 4.

    Args:
        position: (1, h w, C), SAM2's sine encoding of each position.
        attention: false leaves Eq. 3 out (the ablation "w/o BD-Fusion": Z1_bd = Z_bd).
        residual: add Z_bd to Z1_bd, which the paper's Eq. 3 does not (reading 3).
    """

    position: Tensor

    def __init__(self, channels: int, position: Tensor, *, attention: bool = True, residual: bool = False) -> None:
        super().__init__()
        self.register_buffer("position", position, persistent=False)
        self.residual = residual
        self.projections = None
        if attention:
            self.projections = nn.ModuleDict({x: nn.Linear(channels, channels) for x in ("query", "key", "value")})
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, z_boundary: Tensor, z: Tensor) -> Tensor:
        """Z2_bd of one slice from its attended and its raw features, all (B, C, h, w)."""
        tokens, raw = (features.flatten(2).transpose(1, 2) for features in (z_boundary, z))  # (B, h w, C)
        if self.projections is not None:
            position = self.position.to(z.dtype)
            query, key = self.projections["query"](tokens + position), self.projections["key"](raw + position)
            attended = attend(query, key, self.projections["value"](raw))  # Eq. 3
            tokens = attended + tokens if self.residual else attended
        tokens = self.mlp(self.norm(tokens)) + tokens  # Eq. 4
        return tokens.transpose(1, 2).view_as(z_boundary)


class BoundaryDetector(nn.Module):
    """A slice decoder of its own, with memories of its own boundaries. Paper: 3.3; reading 3."""

    def __init__(self, decoder: SliceDecoder, fusion: BoundaryFusion) -> None:
        super().__init__()
        self.decoder = decoder
        self.fusion = fusion

    def forward(self, context: Tensor, fine: Features, bank: Bank, prompts: Prompts | None = None) -> DecodedSlice:
        """The boundaries P_bd of one slice, made from Z2_bd: see `SliceDecoder.attend` and `SliceDecoder.finish`."""
        attended = self.decoder.attend(context, bank)
        return self.decoder.finish(self.fusion(attended, fine.z), attended, fine, bank, prompts)
