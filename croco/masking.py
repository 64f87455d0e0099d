"""Random patch masks for cross-view completion."""

import torch
from torch import Tensor, nn


class RandomMask(nn.Module):
    """Draws masks (B, num_patches), True where hidden, each hiding the same share of its row.

    Raises:
        ValueError: ``mask_ratio`` is outside [0, 1).
    """

    def __init__(self, mask_ratio: float):
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} is outside [0, 1)")
        self.mask_ratio = mask_ratio

    def forward(self, batch: int, num_patches: int, device: torch.device) -> Tensor:
        hidden = int(self.mask_ratio * num_patches)
        order = torch.rand(batch, num_patches, device=device).argsort(dim=1)
        return order < hidden
