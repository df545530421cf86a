"""BD (paper 3.3): a second slice decoder, for boundaries, with BD-Fusion between its attention and its masks."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_3dmed.model.memory_bank import Bank, Memory
from sam2_3dmed.model.prompts import Prompts
from sam2_3dmed.model.slice_decoder import SliceDecoder


class BoundaryFusion(nn.Module):
    """Cross-attention of boundary features to the raw features. Paper: 3.3, Eqs. 3 and 4.

    Args:
        channels: C.
        position: (1, h w, C), SAM2's sine encoding of each position.
        attention: false leaves Eq. 3 out (the ablation "w/o BD-Fusion": Z1_bd = Z_bd).
        residual: add Z_bd to Z1_bd, which the paper's Eq. 3 does not (reading 3).
    """

    position: Tensor

    def __init__(self, channels: int, position: Tensor, *, attention: bool = True, residual: bool = False) -> None:
        super().__init__()
        self.register_buffer("position", position, persistent=False)
        self.residual = residual
        self.projections = (
            nn.ModuleDict({name: nn.Linear(channels, channels) for name in ("query", "key", "value")})
            if attention
            else None
        )
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, z_boundary: Tensor, z: Tensor) -> Tensor:
        """Z2_bd of one slice from its attended and its raw features, all (B, C, h, w)."""
        tokens = z_boundary.flatten(2).transpose(1, 2)  # (B, h w, C)
        if self.projections is not None:
            tokens = self._attend(tokens, z)
        tokens = self.mlp(self.norm(tokens)) + tokens  # Eq. 4
        return tokens.transpose(1, 2).view_as(z_boundary)

    def _attend(self, tokens: Tensor, z: Tensor) -> Tensor:
        assert self.projections is not None
        raw = z.flatten(2).transpose(1, 2)
        position = self.position.to(z.dtype)
        query, key, value = (  # (B, 1, h w, C): one head, as the fast kernels and ONNX need it
            self.projections[name](x).unsqueeze(1)
            for name, x in (("query", tokens + position), ("key", raw + position), ("value", raw))
        )
        attended = F.scaled_dot_product_attention(query, key, value).squeeze(1)  # Eq. 3
        return attended + tokens if self.residual else attended


class BoundaryStep(NamedTuple):
    """The output of the boundary branch for one slice."""

    features: Tensor
    """Z2_bd, (B, C, h, w)."""
    logits: Tensor
    """P_bd, (B, K, 4h, 4w)."""
    memory: Memory | None
    """For the bank; None where no later slice reads it."""


class BoundaryDetector(nn.Module):
    """A slice decoder of its own, with memories of its own boundaries. Paper: 3.3; reading 3."""

    def __init__(self, decoder: SliceDecoder, fusion: BoundaryFusion) -> None:
        super().__init__()
        self.decoder = decoder
        self.fusion = fusion

    def forward(
        self, context: Tensor, z: Tensor, stride8: Tensor, stride4: Tensor, bank: Bank, prompts: Prompts | None = None
    ) -> BoundaryStep:
        """The boundaries of one slice. The bank stays unchanged.

        Args:
            context, z: (B, C, h, w).
            stride8, stride4: the slice's part of `decoder.project`.
            bank: the memories of the slices before.
            prompts: of the slice.
        """
        attended = self.decoder.attend(context, bank)
        fused = self.fusion(attended, z)
        found = self.decoder.decode(fused, stride8, stride4, prompts)
        memory = self.decoder.encode_memory(z, found, attended) if bank.will_be_read else None
        return BoundaryStep(fused, found.logits, memory)
