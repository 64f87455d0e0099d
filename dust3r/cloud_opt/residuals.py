"""Robust residuals of 3-D points, their derivatives by similarities, and their normal equations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r.cloud_opt.similarity import cross_matrix

# Medians of |x| and of the norm of (x, y), for independent standard normal x and y.
MEDIAN_1D, MEDIAN_2D = 0.6745, 1.1774
# Width of the Cauchy kernel in medians of the residuals.
KERNEL_WIDTH = 2.0
_LEAST_WIDTH = 1e-5


@dataclass(frozen=True)
class Kernel:
    """How far residuals, relative to depth, may be: ``width`` across the ray, ``ratio`` (at most 1)
    is what a residual along the ray counts against one across."""

    width: float
    ratio: float

    @property
    def depth_spread(self) -> float:
        """Standard deviation of a pair's depth, relative to depth, as the residuals show it."""
        return self.width / (KERNEL_WIDTH * MEDIAN_2D) / self.ratio

    @classmethod
    def of(cls, across: Tensor, along: Tensor) -> "Kernel":
        """From the residuals' norms across (K,) and sizes along (K,) the rays."""
        spread = across.median().item() / MEDIAN_2D
        depth_spread = along.median().item() / MEDIAN_1D
        ratio = min(1.0, max(0.05, spread / max(depth_spread, 1e-12)))
        return cls(max(KERNEL_WIDTH * MEDIAN_2D * spread, _LEAST_WIDTH), ratio)


def tangent(points: Tensor) -> Tensor:
    """(..., 3, 7) derivative of a point under exp(rotation, translation, log-scale)."""
    identity = torch.eye(3).to(points).expand(*points.shape[:-1], 3, 3)
    return torch.cat([-cross_matrix(points), identity, points[..., None]], -1)


def accumulate(
    jacobian: Tensor, residual: Tensor, rays: Tensor, votes: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor, float, float]:
    """Hessians (K, D, D) and gradients (K, D) of pairs, their cost and the sum of votes."""
    shrink = kernel.ratio - 1
    residual = whitened(residual, rays, kernel)
    jacobian = jacobian + shrink * rays[..., None] * (rays[..., None, :] @ jacobian)
    squared = residual.square().sum(-1) / kernel.width**2
    root = (votes / (1 + squared)).sqrt()[..., None]
    flat = (root[..., None] * jacobian).flatten(1, 2)
    weighted = (root * residual).flatten(1, 2)
    hessian = (flat.mT @ flat).double()
    gradient = (flat.mT @ weighted[..., None])[..., 0].double()
    return hessian, gradient, *robust_cost(residual, votes, kernel)


def whitened(residual: Tensor, rays: Tensor, kernel: Kernel) -> Tensor:
    """Residuals (..., 3) with their part along the rays made to count as the kernel says."""
    return residual + (kernel.ratio - 1) * (residual * rays).sum(-1, keepdim=True) * rays


def robust_cost(residual: Tensor, votes: Tensor, kernel: Kernel) -> tuple[float, float]:
    """Cauchy's cost of whitened residuals, and the sum of votes."""
    cost = votes * (residual.square().sum(-1) / kernel.width**2).log1p()
    total = kernel.width**2 * cost.sum(dtype=torch.float64).item()
    return total, votes.sum(dtype=torch.float64).item()
