"""Many pairs' words on one image, fused into one depth map, with what they leave in doubt."""

import torch
from torch import Tensor

from dust3r.cloud_opt.similarity import weighted_median

_STEPS = 5
_POINT_STEPS = 3


def fuse_rays(
    maps: Tensor, votes: Tensor, rays: Tensor, width: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """Depths of M pixels from K pointmaps of the same image.

    Robust means around weighted medians; kernel as in ``dust3r.cloud_opt.solver.Kernel``.

    Args:
        maps: (K, M, 3) in the image's own frame.
        votes: (K, M).
        rays: (M, 3) with z = 1.

    Returns:
        depth (M,), z, 0 where nobody votes; and the weights (K, M) that maps had in it, which sum
        to 1 there.
    """
    squared = rays.square().sum(-1)
    depths = (maps * rays).sum(-1) / squared
    across = (maps - depths[..., None] * rays).norm(dim=-1)
    votes = torch.where(depths > 0, votes, 0.0)
    fused = weighted_median(depths.T, votes.T).clamp_min(1e-9)
    length = squared.sqrt()
    for _ in range(_STEPS):
        along = (depths - fused) * length
        off = (across.square() + (ratio * along).square()) / (width * fused).square()
        weights = votes / (1 + off)
        total = weights.sum(0)
        fused = torch.where(total > 0, (weights * depths).sum(0) / total, 0.0).clamp_min(1e-9)
    return torch.where(total > 0, fused, 0.0), weights / total.clamp_min(1e-30)


def fuse_points(maps: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (M, 3) of M pixels from K maps (K, M, 3), and their weights (M,), without a camera."""
    flat = maps.permute(1, 2, 0).flatten(0, 1)
    spread = votes.T[:, None].expand(-1, 3, -1).flatten(0, 1)
    fused = weighted_median(flat, spread).view(-1, 3)
    for _ in range(_POINT_STEPS):
        residual = (maps - fused).norm(dim=-1)
        width = 2 * residual[votes > 0].median().clamp_min(1e-9) if (votes > 0).any() else 1.0
        weights = votes / (1 + (residual / width).square())
        total = weights.sum(0)
        mean = (weights[..., None] * maps).sum(0) / total.clamp_min(1e-30)[:, None]
        fused = torch.where(total[:, None] > 0, mean, fused)
    return fused, total


def spread_of(depths: Tensor, fused: Tensor, weights: Tensor, sigmas: Tensor | None) -> Tensor:
    """Relative standard deviation (M,) of fused depths (M,).

    The law of total variance over the maps: the mean of what each states of itself, plus what they
    differ by. Errors of pairs that share an image are far from independent, so the number of maps
    earns nothing.

    Args:
        depths, weights: (K, M) as they were fused; weights sum to 1 over K.
        sigmas: (K, M) relative standard deviations as stated by the model.
    """
    relative = (depths / fused.clamp_min(1e-9) - 1).square()
    stated = sigmas.square().nan_to_num(posinf=1e6)
    return (weights * (relative + stated)).sum(0).sqrt()
