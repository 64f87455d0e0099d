"""Joint Gauss-Newton steps on all cameras and all pairs, with depth fused in between.

The objective is DUSt3R's (Wang et al., 2024, eq. 5): every pair's two pointmaps, moved by a
similarity of its own, are to coincide with the points of the images' cameras and depth maps. It is
minimised differently. Residuals are relative to depth and measured in the frame of the image that
they belong to, so that the scene cannot shrink; across the ray and along it they have the spread
that is found there; and a Cauchy kernel as wide as the median residual takes outliers out. A pair's
frame is that of its first camera, but for its scale: with a pose of its own per pair, cameras could
step back while their focals grow, and noise drives them to. Given depth, seven unknowns an image
and one a pair remain, and the pairs' are eliminated one by one (Schur complement). A few
second-order steps replace hundreds of gradient steps over every pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dust3r.cloud_opt.fusion import fuse_points, fuse_rays
from dust3r.cloud_opt.observations import Samples
from dust3r.cloud_opt.pinhole import Pinholes
from dust3r.cloud_opt.residuals import Kernel, accumulate, robust_cost, tangent, whitened
from dust3r.cloud_opt.similarity import apply, exponential, scaling

# Squared relative distance that single precision does not resolve.
_ROUND_OFF = 1e-12
_CHUNK = 1 << 20
_MOST_DAMPING = 1e6


@dataclass(frozen=True)
class State:
    """The unknowns, all in double precision but for the points.

    Attributes:
        cameras: (N, 4, 4) similarities from image n's own frame to the world. Their scale is that
            of its depth map.
        scales: (P,) from a pair's frame to that of its first image.
        points: (N, M, 3) sampled points of image n in its own frame, on the rays of its pixels.
        pinholes: focals and principal points.
    """

    cameras: Tensor
    scales: Tensor
    points: Tensor
    pinholes: Pinholes


@dataclass(frozen=True)
class Step:
    """Normal equations: of all cameras, (N, 7, N, 7) and (N, 7), pairs eliminated; of the pairs'
    log-scales, (P,), and what couples them to their two cameras (P, 14); and the robust cost."""

    hessian: Tensor
    gradient: Tensor
    pair_hessian: Tensor
    pair_coupling: Tensor
    pair_gradient: Tensor
    cost: float


def optimise(
    samples: Samples,
    state: State,
    free: Tensor,
    niter: int,
    tolerance: float = 1e-4,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[State, float]:
    """Minimise the objective from ``state``.

    Args:
        free: (N, 7) bool: which of rotation, translation and log-scale of each camera may change.
        niter: most steps.
        tolerance: stop when a round changes neither cost nor focals by more than this fraction.
        progress: called with the number of steps done and the cost.

    Returns:
        the state, and its robust cost: the mean over samples of a squared relative distance.
    """
    kernel = kernel_of(samples, state)
    damping = 1e-6
    step = _normal_equations(samples, state, kernel)
    for done in range(niter):
        update, pair_update = _solve(step, free, damping, samples.edges)
        moved = replace(
            state,
            cameras=state.cameras @ exponential(update),
            scales=state.scales * pair_update.exp(),
        )
        cost = _cost(samples, moved, kernel)
        if not cost <= step.cost * (1 + 1e-6):
            damping *= 10
            if damping > _MOST_DAMPING:
                break
            continue
        damping = max(damping / 10, 1e-9)
        before = moved.pinholes.focals
        state = _refit_depth(samples, moved, kernel)
        change = (state.pinholes.focals / before - 1).abs().max().item()
        kernel = kernel_of(samples, state)
        last, step = step.cost, _normal_equations(samples, state, kernel)
        if progress is not None:
            progress(done + 1, step.cost)
        # Fused depth is robust by itself and not the minimum of this cost: only the change from one
        # round to the next vanishes.
        gain = abs(step.cost - last)
        if gain < tolerance * last + _ROUND_OFF and change < tolerance:
            break
    return state, step.cost


def second_similarities(edges: Tensor, state: State) -> Tensor:
    """(P, 4, 4): from a pair's frame to that of its second image."""
    first, second = edges.unbind(1)
    between = torch.linalg.inv(state.cameras[second]) @ state.cameras[first]
    return between @ scaling(state.scales)


def _residuals(samples: Samples, state: State, side: int, chunk: slice) -> tuple[Tensor, ...]:
    """Of one side of K pairs: moved points y, (C - y) / depth, rays, depth, votes, (K, M, ...)."""
    edges = samples.edges[chunk]
    part = replace(state, scales=state.scales[chunk])
    similarity = scaling(part.scales) if side == 0 else second_similarities(edges, part)
    moved = apply(similarity, samples.points[side][chunk])
    target = state.points[edges[:, side]]
    depth = target[..., 2:].clamp_min(1e-9)
    rays = torch.nn.functional.normalize(target, dim=-1)
    return moved, (target - moved) / depth, rays, depth, samples.votes[side][chunk]


def _cost(samples: Samples, state: State, kernel: Kernel) -> float:
    cost = weight = 0.0
    for chunk in _chunks(samples):
        for side in (0, 1):
            _, residual, rays, _, votes = _residuals(samples, state, side, chunk)
            more, more_weight = robust_cost(whitened(residual, rays, kernel), votes, kernel)
            cost, weight = cost + more, weight + more_weight
    return cost / max(weight, 1e-12)


def kernel_of(samples: Samples, state: State) -> Kernel:
    across, along = [], []
    for chunk in _chunks(samples):
        for side in (0, 1):
            _, residual, rays, _, votes = _residuals(samples, state, side, chunk)
            on_ray = (residual * rays).sum(-1)
            off_ray = (residual - on_ray[..., None] * rays).norm(dim=-1)
            across.append(off_ray[votes > 0])
            along.append(on_ray[votes > 0].abs())
    across, along = torch.cat(across), torch.cat(along)
    if not across.numel():
        raise ValueError("no pixel has a vote: the masks cover everything, or nothing is finite")
    return Kernel.of(across, along)


def _normal_equations(samples: Samples, state: State, kernel: Kernel) -> Step:
    n_images, n_pairs = len(state.cameras), len(state.scales)
    blocks = torch.zeros(n_images * n_images, 7, 7, dtype=torch.float64)
    gradient = torch.zeros(n_images, 7, dtype=torch.float64)
    pair_hessian = torch.zeros(n_pairs, dtype=torch.float64)
    pair_coupling = torch.zeros(n_pairs, 14, dtype=torch.float64)
    pair_gradient = torch.zeros(n_pairs, dtype=torch.float64)
    cost = weight = 0.0
    for chunk in _chunks(samples):
        own, own_gradient, own_cost, own_weight = _first_side(samples, state, kernel, chunk)
        both, both_gradient, both_cost, both_weight = _second_side(samples, state, kernel, chunk)
        cost += own_cost + both_cost
        weight += own_weight + both_weight
        # To the second side, the pair's scale is the first camera's.
        curvature = (own[:, 0, 0] + both[:, 6, 6]).clamp_min(1e-12)
        slope = own_gradient[:, 0] + both_gradient[:, 6]
        coupling = both[:, 6]
        reduced = both - coupling[:, :, None] * coupling[:, None] / curvature[:, None, None]
        right = both_gradient - (slope / curvature)[:, None] * coupling
        first, second = samples.edges[chunk].unbind(1)
        for a, row in ((first, slice(0, 7)), (second, slice(7, 14))):
            gradient.index_add_(0, a, right[:, row])
            for b, column in ((first, slice(0, 7)), (second, slice(7, 14))):
                blocks.index_add_(0, a * n_images + b, reduced[:, row, column])
        pair_hessian[chunk], pair_coupling[chunk], pair_gradient[chunk] = curvature, coupling, slope
    hessian = blocks.view(n_images, n_images, 7, 7).transpose(1, 2)
    return Step(
        hessian, gradient, pair_hessian, pair_coupling, pair_gradient, cost / max(weight, 1e-12)
    )


def _first_side(
    samples: Samples, state: State, kernel: Kernel, chunk: slice
) -> tuple[Tensor, Tensor, float, float]:
    """``accumulate`` of first images, whose maps move with the pair's log-scale alone."""
    moved, residual, rays, depth, votes = _residuals(samples, state, 0, chunk)
    return accumulate(-moved[..., None] / depth[..., None], residual, rays, votes, kernel)


def _second_side(
    samples: Samples, state: State, kernel: Kernel, chunk: slice
) -> tuple[Tensor, Tensor, float, float]:
    """``accumulate`` of second images, whose maps move with the first camera, and they with the
    second."""
    moved, residual, rays, depth, votes = _residuals(samples, state, 1, chunk)
    first, second = samples.edges[chunk].unbind(1)
    in_first = state.scales[chunk, None, None].float() * samples.points[1][chunk]
    linear = (torch.linalg.inv(state.cameras[second]) @ state.cameras[first])[:, None, :3, :3]
    jacobian = torch.cat([-linear.float() @ tangent(in_first), tangent(moved)], -1)
    return accumulate(jacobian / depth[..., None], residual, rays, votes, kernel)


def _solve(step: Step, free: Tensor, damping: float, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Updates (N, 7) of cameras and (P,) of the pairs' log-scales."""
    n_images = len(free)
    chosen = free.flatten()
    hessian = step.hessian.reshape(7 * n_images, 7 * n_images)[chosen][:, chosen]
    diagonal = hessian.diagonal()
    hessian = hessian + torch.diag(damping * diagonal + 1e-12 * diagonal.max().clamp_min(1e-12))
    update = torch.zeros(7 * n_images, dtype=torch.float64)
    update[chosen] = torch.linalg.solve(hessian, -step.gradient.flatten()[chosen])
    update = update.view(n_images, 7)
    around = update[edges].flatten(1)
    right = step.pair_gradient + (step.pair_coupling * around).sum(1)
    return update, -right / step.pair_hessian


def _refit_depth(samples: Samples, state: State, kernel: Kernel) -> State:
    """Depth and intrinsics from all that is said of every image, similarities as they are."""
    seconds = second_similarities(samples.edges, state)
    seen: list[tuple[Tensor, Tensor]] = []
    for n in range(samples.n_images):
        maps, votes = [], []
        for side, similarities in enumerate((scaling(state.scales), seconds)):
            own = samples.edges[:, side] == n
            maps.append(apply(similarities[own], samples.points[side][own]))
            votes.append(samples.votes[side][own])
        seen.append((torch.cat(maps), torch.cat(votes)))
    clouds = [fuse_points(maps, votes) for maps, votes in seen]
    in_own_frame = torch.zeros(samples.n_images, dtype=torch.bool)
    in_own_frame[samples.edges[:, 0]] = True
    pinholes = state.pinholes.refit(samples.pixels, clouds, in_own_frame)
    points = state.points.clone()
    for n, (maps, votes) in enumerate(seen):
        rays = pinholes.rays(n, samples.pixels[n])
        depth, _ = fuse_rays(maps, votes, rays, kernel.width, kernel.ratio)
        points[n] = depth[:, None] * rays
    return replace(state, points=points, pinholes=pinholes)


def _chunks(samples: Samples) -> list[slice]:
    per_pair = max(1, samples.points[0].shape[1])
    size = max(1, _CHUNK // per_pair)
    return [slice(a, a + size) for a in range(0, len(samples.edges), size)]
