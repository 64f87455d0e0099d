"""Gated residual refinement: small corrections of a pointmap, each taken as far as a gate opens.

Zhu et al., "Trust It or Not: Evidential Uncertainty for Feed-Forward 3D Reconstruction with
Trust3R", 2026. Parameter names are those of the published weights.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["pixel_shuffle", "bilinear"]
MODES = ("pixel_shuffle", "bilinear")


class ResidualGated(nn.Module):
    """points + gate x delta, from what two MLPs say of each token.

    Args:
        mode: ``'pixel_shuffle'``: a token holds the gate's logit and the delta of each pixel of its
            patch. ``'bilinear'``: it holds one of each, interpolated between the tokens' centres
            and smoothed by a 3x3 convolution per channel.
        patch_size: pixels of a token's side.
    """

    def __init__(self, mode: Mode, patch_size: int):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"the gate's mode is one of {', '.join(MODES)}, not {mode!r}")
        self.mode = mode
        self.patch_size = patch_size
        self.gate_post = nn.Conv2d(1, 1, 3, padding=1)
        self.delta_post = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        if mode == "pixel_shuffle":
            # Kept for their names, which published weights of this mode have, and never run.
            self.requires_grad_(False)

    @property
    def values_per_token(self) -> int:
        """How many logits of the gate, and how many deltas, a token holds."""
        return self.patch_size**2 if self.mode == "pixel_shuffle" else 1

    def forward(
        self, points: Tensor, logits: Tensor, deltas: Tensor, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The maps by which a prediction carries a refinement.

        Args:
            points: (B,H,W,3).
            logits: (B,N,V) of tokens, with V ``values_per_token``.
            deltas: (B,N,3V), in the unit of the points.
            grid: rows and columns of tokens.

        Returns:
            ``pts3d`` and ``pts3d_refined``, the corrected points, ``pts3d_raw``, those given, all
            (B,H,W,3); ``rg_gate`` in (0, 1) and ``rg_gate_logits`` (B,1,H,W); ``rg_delta``
            (B,3,H,W).
        """
        logits = self._to_image(logits, grid, self.gate_post)
        delta = self._to_image(deltas, grid, self.delta_post)
        gate = logits.sigmoid()
        refined = points + (gate * delta).movedim(1, -1)
        return {
            "pts3d": refined,
            "pts3d_raw": points,
            "pts3d_refined": refined,
            "rg_gate": gate,
            "rg_gate_logits": logits,
            "rg_delta": delta,
        }

    def _to_image(self, tokens: Tensor, grid: tuple[int, int], post: nn.Module) -> Tensor:
        coarse = tokens.transpose(1, 2).unflatten(2, grid)
        if self.mode == "pixel_shuffle":
            return F.pixel_shuffle(coarse, self.patch_size).float()
        fine = F.interpolate(coarse.float(), scale_factor=self.patch_size, mode="bilinear")
        return post(fine).float()
