"""Similarities of 3-space as (..., 4, 4) matrices: scale times rotation, and translation."""

import roma
import torch
from torch import Tensor

_ROBUST_STEPS = 8


def scale_of(similarity: Tensor) -> Tensor:
    """Scales (...) of similarities (..., 4, 4)."""
    return torch.linalg.det(similarity[..., :3, :3]).clamp_min(1e-300).pow(1 / 3)


def rigid_of(similarity: Tensor) -> Tensor:
    """The same rotations and translations with scale 1."""
    rigid = similarity.clone()
    rigid[..., :3, :3] = roma.special_procrustes(similarity[..., :3, :3])
    return rigid


def from_parts(rotation: Tensor, translation: Tensor, scale: Tensor) -> Tensor:
    """(..., 4, 4) of rotations (..., 3, 3), translations (..., 3) and scales (...)."""
    similarity = torch.eye(4, dtype=rotation.dtype, device=rotation.device)
    similarity = similarity.repeat(*rotation.shape[:-2], 1, 1)
    similarity[..., :3, :3] = scale[..., None, None] * rotation
    similarity[..., :3, 3] = translation
    return similarity


def scaling(scale: Tensor) -> Tensor:
    """(..., 4, 4) of scales (...) alone."""
    diagonal = torch.cat(
        [scale[..., None].expand(*scale.shape, 3), torch.ones_like(scale)[..., None]], -1
    )
    return torch.diag_embed(diagonal)


def exponential(tangent: Tensor) -> Tensor:
    """(..., 4, 4) of tangents (..., 7): rotation vector, translation, logarithm of scale."""
    turn, shift, growth = tangent.split([3, 3, 1], dim=-1)
    generator = tangent.new_zeros(*tangent.shape[:-1], 4, 4)
    generator[..., :3, :3] = cross_matrix(turn) + growth[..., None] * torch.eye(3).to(tangent)
    generator[..., :3, 3] = shift
    return torch.linalg.matrix_exp(generator)


def cross_matrix(vector: Tensor) -> Tensor:
    """(..., 3, 3) matrices of the cross product with vectors (..., 3) from the left."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y), (z, zero, -x), (-y, x, zero)
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def apply(similarity: Tensor, points: Tensor) -> Tensor:
    """Points (..., N, 3) under similarities (..., 4, 4), in the points' own precision."""
    similarity = similarity.to(points.dtype)
    return points @ similarity[..., :3, :3].mT + similarity[..., None, :3, 3]


def register(points: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Similarities (B, 4, 4) that take points (B, N, 3) to targets (B, N, 3), despite outliers.

    Weighted closed form (Umeyama, 1991; by roma), reweighted by a Cauchy kernel whose width follows
    the median residual. Weights are (B, N).
    """
    points, targets = points.double(), targets.double()
    base = weights.double()
    used = base
    for _ in range(_ROBUST_STEPS):
        # roma divides by the sum of weights.
        total = used.sum(1, keepdim=True).clamp_min(1e-12)
        rotation, translation, scale = roma.rigid_points_registration(
            points, targets, used / total, compute_scaling=True
        )
        similarity = from_parts(rotation, translation, scale)
        residual = (targets - apply(similarity, points)).norm(dim=-1)
        width = 2 * weighted_median(residual, base)[:, None].clamp_min(1e-9)
        used = base / (1 + (residual / width).square())
    return similarity


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """(B,): least of values (B, N) with half of the weight (B, N) at or below it."""
    ordered, order = values.sort(dim=1)
    mass = weights.gather(1, order).cumsum(1)
    place = (mass < 0.5 * mass[:, -1:]).sum(1, keepdim=True).clamp_max(values.shape[1] - 1)
    return ordered.gather(1, place)[:, 0]
