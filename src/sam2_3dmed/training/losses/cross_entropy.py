"""Cross entropy of single pixels: binary, and focal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.training.losses.registry import segmentation_term


@segmentation_term("bce")
def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross entropy, the paper's L_seg (3.4; reading 16)."""
    return F.binary_cross_entropy_with_logits(logits, masks)


@segmentation_term("focal")
def focal(logits: Tensor, masks: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017). SAM2 trains with 20 parts of it to one of Dice (Ravi et al. 2024)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    missed = torch.where(masks > 0, 1 - torch.sigmoid(logits), torch.sigmoid(logits))
    balance = torch.where(masks > 0, alpha, 1 - alpha)
    return (balance * missed**gamma * cross_entropy).mean()
