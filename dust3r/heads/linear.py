"""The linear head: each token predicts the points of its own patch."""

import torch.nn.functional as F
from torch import Tensor, nn

from dust3r.heads.postprocess import Mode, confidence, pointmap


class PointmapLinear(nn.Module):
    """Pointmap and confidence from the last decoder layer (DUSt3R, 2024, section 3.3)."""

    def __init__(self, token_dim: int, patch_size: int, depth_mode: Mode, conf_mode: Mode | None):
        super().__init__()
        self.patch_size = patch_size
        self.depth_mode, self.conf_mode = depth_mode, conf_mode
        channels = 3 + (conf_mode is not None)
        self.proj = nn.Linear(token_dim, channels * patch_size**2)

    @classmethod
    def build(cls, model: nn.Module) -> "PointmapLinear":
        return cls(model.dec_embed_dim, model.patch_size, model.depth_mode, model.conf_mode)

    def forward(self, tokens: list[Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        grid = tuple(side // self.patch_size for side in image_size)
        patches = self.proj(tokens[-1]).transpose(1, 2).unflatten(2, grid)
        dense = F.pixel_shuffle(patches, self.patch_size).float()
        return pointmap_and_confidence(dense, self.depth_mode, self.conf_mode)


def pointmap_and_confidence(
    dense: Tensor, depth_mode: Mode, conf_mode: Mode | None
) -> dict[str, Tensor]:
    """Raw maps (B, 3 or 4, H, W), fp32, to ``pts3d`` (B, H, W, 3) and ``conf`` (B, H, W)."""
    prediction = {"pts3d": pointmap(dense[:, :3].permute(0, 2, 3, 1), depth_mode)}
    if conf_mode is not None:
        prediction["conf"] = confidence(dense[:, 3], conf_mode)
    return prediction
