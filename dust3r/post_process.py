"""Cameras from pointmaps in their own frame."""

import math

import torch
from torch import Tensor

# Half of 60 degrees: the field of view that the focal limits are multiples of.
_HALF_VIEW = math.radians(30)
_WEISZFELD_STEPS = 10


def estimate_focal_knowing_depth(
    pts3d: Tensor,
    pp: Tensor,
    focal_mode: str = "median",
    min_focal: float = 0.0,
    max_focal: float = math.inf,
    weights: Tensor | None = None,
) -> Tensor:
    """Focal lengths (B,) in pixels of pointmaps (B, H, W, 3) in their cameras' frames.

    Args:
        pp: principal points (B, 2) or (2,), in pixels.
        focal_mode: ``'median'`` of every pixel's own two estimates, or ``'weiszfeld'``: the focal
            of least mean reprojection distance (Weiszfeld, 1937), robust to both coordinates at
            once.
        min_focal, max_focal: limits, in focals of a camera that sees the longer side at 60 degrees.
        weights: (B, H, W) of the pixels; 0 leaves one out.

    Raises:
        ValueError: another ``focal_mode``.
    """
    batch, height, width, _ = pts3d.shape
    v, u = torch.meshgrid(
        torch.arange(height, dtype=pts3d.dtype, device=pts3d.device),
        torch.arange(width, dtype=pts3d.dtype, device=pts3d.device),
        indexing="ij",
    )
    pixels = torch.stack([u, v], -1).flatten(0, 1) - pp.reshape(-1, 1, 2).to(pts3d)
    points = pts3d.flatten(1, 2)
    weights = None if weights is None else weights.flatten(1)
    focal = fit_focal(points, pixels.expand(batch, -1, 2), weights, focal_mode)
    base = max(height, width) / (2 * math.tan(_HALF_VIEW))
    return focal.clip(min=min_focal * base, max=max_focal * base)


def fit_focal(
    points: Tensor, pixels: Tensor, weights: Tensor | None = None, focal_mode: str = "weiszfeld"
) -> Tensor:
    """Focal lengths (B,) of points (B, N, 3) seen at pixels (B, N, 2) from the principal point."""
    if focal_mode == "median":
        estimates = pixels * points[..., 2:] / points[..., :2]
        if weights is not None:
            estimates = torch.where(weights[..., None] > 0, estimates, torch.nan)
        return estimates.flatten(1).nanmedian(dim=1).values
    if focal_mode != "weiszfeld":
        raise ValueError(f"focal_mode={focal_mode!r} is neither 'median' nor 'weiszfeld'")
    directions = (points[..., :2] / points[..., 2:]).nan_to_num(posinf=0, neginf=0)
    along = (directions * pixels).sum(-1)
    squared = directions.square().sum(-1)
    base = torch.ones_like(along) if weights is None else weights
    focal = (base * along).sum(1) / (base * squared).sum(1)
    for _ in range(_WEISZFELD_STEPS):
        distance = (pixels - focal[:, None, None] * directions).norm(dim=-1)
        weight = base / distance.clip(min=1e-8)
        focal = (weight * along).sum(1) / (weight * squared).sum(1)
    return focal
