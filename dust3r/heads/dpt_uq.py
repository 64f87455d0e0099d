"""GeoUQ: evidential depth uncertainty read off the predicted geometry (the teacher)."""

import torch
from torch import Tensor, nn

from dust3r.heads.dpt import PointmapDPT
from dust3r.uncertainty.evidential import NormalInverseGamma


class GeoUQ(PointmapDPT):
    """``dpt`` and, on its pointmap and confidence, a normal-inverse-gamma of each pixel's depth."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.conf_mode is None:
            raise ValueError("GeoUQ reads the confidence: give conf_mode, as ('exp', 1, inf)")
        self.depth_evi_head = convolutions(4, 128, 4)

    def dense(
        self, tokens: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        prediction, features = super().dense(tokens, image_size)
        geometry = torch.cat([prediction["pts3d"], prediction["conf"][..., None]], dim=-1)
        raw = self.depth_evi_head(geometry.permute(0, 3, 1, 2))
        prediction |= depth_outputs(NormalInverseGamma.from_raw(raw))
        return prediction, features


def convolutions(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """conv 3x3, GELU, conv 1x1: the shape of every uncertainty head."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1), nn.GELU(), nn.Conv2d(hidden, out_channels, 1)
    )


def depth_outputs(nig: NormalInverseGamma, suffix: str = "") -> dict[str, Tensor]:
    """The six maps (B, 1, H, W) by which a prediction carries a depth distribution."""
    maps = {
        "gamma": nig.gamma,
        "nu": nig.nu,
        "alpha": nig.alpha,
        "beta": nig.beta,
        "mu": nig.mean,
        "var": nig.variance,
    }
    return {f"depth_{name}{suffix}": value for name, value in maps.items()}
