"""Depth of every pixel from the canonical pointmaps and what refinement made of their anchors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dust3r.cloud_opt.cleaning import pixels_of
from dust3r.cloud_opt.pinhole import pixel_grid
from dust3r.cloud_opt.similarity import rigid_of, scale_of
from dust3r.utils.geometry import geotrf, inv
from mast3r.cloud_opt.bundle import Bundle, BundleState
from mast3r.cloud_opt.canonical import Canonical

DEPTHS = ("network", "triangulated", "tsdf")

# Relative standard deviation up to which an anchor that matches alone place is believed.
_TRIANGULATED = 0.05
# Surfaces are sought this many standard deviations of depth about a pixel's own, in as many steps.
_TRUNCATION, _STEPS = 3.0, 6
_MOST_NEIGHBOURS = 8


@dataclass(frozen=True)
class DenseMaps:
    """Depth (H, W) of every image in scene units, 0 where unknown, and its standard deviation,
    0 there as well; infinite where depth is known but not to be shown."""

    depths: list[Tensor]
    deviations: list[Tensor]


def dense_maps(
    bundle: Bundle,
    state: BundleState,
    canonicals: Sequence[Canonical],
    kind: str,
    free: Tensor,
    opt_depth: bool,
) -> DenseMaps:
    """Maps of one of the ``DEPTHS``, explained at ``SparseScene.compute_global_alignment``.

    Args:
        free, opt_depth: as for ``Bundle.refine``.
    """
    spreads = bundle.deviations(state, free, opt_depth)
    alone = kind == "triangulated"
    if alone:
        state = bundle.triangulate(state)
        placed = bundle.triangulated_deviations(state)
    scales = scale_of(state.cameras).float()
    depths, deviations = [], []
    for n, one in enumerate(canonicals):
        cells, shape = bundle.cells[n], tuple(one.depth.shape)
        matched = torch.bincount(bundle.hosts[n].cell, minlength=len(cells)) > 0
        outside = torch.zeros(shape, dtype=torch.bool)
        if alone:
            matched = placed[n] < _TRIANGULATED
            spreads[n] = torch.where(matched, placed[n], spreads[n])
            outside = _nearest_cells(matched.double(), cells.grid, cells.size, shape) == 0
        weights = matched.double()
        correction = cells.spread(state.corrections[n], weights, shape).float()
        depth = scales[n] * one.depth * correction.exp()
        # What nothing matches is as uncertain as the worst of the image, which is such a cell.
        most = spreads[n].max()
        relative = most - cells.spread(most - spreads[n], weights, shape).float()
        depths.append(depth)
        deviations.append(torch.where(outside, torch.inf, relative * depth))
    if kind == "tsdf":
        depths = _fused(bundle, state, canonicals, depths, bundle.depth_spread)
    return DenseMaps(depths, deviations)


def _nearest_cells(
    values: Tensor, grid: tuple[int, int], size: int, shape: tuple[int, int]
) -> Tensor:
    """(H, W) largest value of a pixel's cell and the eight around it."""
    around = F.max_pool2d(values.view(1, 1, *grid), 3, 1, 1)
    whole = F.interpolate(around, scale_factor=size, mode="nearest")
    return whole[0, 0, : shape[0], : shape[1]]


def _fused(
    bundle: Bundle,
    state: BundleState,
    canonicals: Sequence[Canonical],
    depths: Sequence[Tensor],
    noise: float,
) -> list[Tensor]:
    """Depths at which the truncated signed distances (Curless and Levoy, 1996) of an image and its
    neighbours change sign, looked for along the image's own rays.

    A pixel keeps its depth where there is no such place near it.
    """
    poses = rigid_of(state.cameras).float()
    matrices = state.pinholes.matrices().float()
    offsets = torch.linspace(-_TRUNCATION, _TRUNCATION, 2 * _STEPS + 1)
    limit = _TRUNCATION * noise
    fused = []
    for n, depth in enumerate(depths):
        height, width = depth.shape
        rays = state.pinholes.rays(n, pixel_grid(height, width).view(height, width, 2))
        tried = depth * (noise * offsets).exp()[:, None, None]
        world = geotrf(poses[n], tried[..., None] * rays.float())
        distance = (depth / tried - 1).nan_to_num().clamp(-limit, limit)
        votes = canonicals[n].confidence.clamp_min(1).log().expand_as(distance).clone()
        total = distance * votes
        host = bundle.hosts[n]
        matched = torch.bincount(host.slot, minlength=len(host.others))
        best = matched.argsort(descending=True, stable=True)[:_MOST_NEIGHBOURS]
        for other in host.others[best].tolist():
            seen, vote = _signed_distance(
                geotrf(inv(poses[other]), world),
                matrices[other],
                depths[other],
                canonicals[other].confidence,
                limit,
            )
            total, votes = total + seen * vote, votes + vote
        fused.append(_zero_crossing(total / votes.clamp_min(1e-9), tried, depth))
    return fused


def _signed_distance(
    points: Tensor, matrix: Tensor, depth: Tensor, confidence: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    """Of points (S, H, W, 3) in a camera's frame: distance to its surface relative to depth, in
    front positive, cut off at ``limit``; and votes, 0 where it does not see them."""
    place, inside, z = pixels_of(points, matrix, depth.shape)
    surface = depth.flatten()[place]
    distance = surface / z.clamp_min(1e-9) - 1
    sees = inside & (surface > 0) & (distance > -limit)
    vote = confidence.flatten()[place].clamp_min(1).log()
    return distance.clamp(-limit, limit), torch.where(sees, vote, 0.0)


def _zero_crossing(distance: Tensor, tried: Tensor, depth: Tensor) -> Tensor:
    """Depth (H, W) where distances (S, H, W) first turn from front to behind along a ray."""
    falls = (distance[:-1] > 0) & (distance[1:] <= 0)
    step = falls.to(torch.uint8).argmax(0, keepdim=True)
    before, after = distance.gather(0, step), distance.gather(0, step + 1)
    share = before / (before - after).clamp_min(1e-12)
    found = tried.gather(0, step) * (1 - share) + tried.gather(0, step + 1) * share
    return torch.where(falls.any(0), found[0], depth)
