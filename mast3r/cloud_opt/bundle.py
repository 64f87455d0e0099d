"""Refinement of cameras, focals and the depth of anchors by reprojection of all matches.

Duisterhof et al., "MASt3R-SfM", 2024, section 4.3: a matched pixel, at the depth of its image, is
to fall on its match in the other image. Unknown are cameras, focals and one depth per anchor;
pixels keep their depth relative to the anchor of their cell.

Wrong matches of surfaces that look alike agree with each other; a kernel whose pull ends (Geman and
McClure, 1987) leaves them as far off as the coarse stage did. Two things hold what little parallax
leaves open: anchors are pulled towards the canonical pointmap, and a point is also to have the
depth that its match has in the other image.

Every anchor is one unknown and is eliminated by itself (Schur complement), so that second-order
steps cost little more than the residuals. To that end the depth of a match in the other image is
taken as given within a step: where steps end, the cost could still fall a little.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dust3r.cloud_opt.pinhole import Pinholes
from dust3r.cloud_opt.residuals import KERNEL_WIDTH, MEDIAN_1D, MEDIAN_2D, tangent
from dust3r.cloud_opt.similarity import apply, exponential
from mast3r.cloud_opt.canonical import Cells
from mast3r.cloud_opt.matched import Hosted, PairMatches, hosted
from mast3r.cloud_opt.minimise import Equations, Unknowns, minimise

# Median of the norm of three independent standard normal numbers.
MEDIAN_3D = 1.5382

# Rotation, translation, log-scale, log-focal.
SLOTS, _SCALE, _FOCAL = 8, 6, 7
# Weights of the priors, by which cameras of synthetic rooms come out best: some depths are off by
# far more than the median, and matches err alike over an image and together would outvote a focal.
_DEPTH_COUNTS, _FOCAL_COUNTS = 0.3, 100.0
_TOLERANCE = 1e-3  # of the cost; less moves no camera of synthetic rooms
_LEAST_FOCAL_SPREAD, _LEAST_PIXELS, _LEAST_DEPTH = 0.01, 0.05, 0.005
_WIDTH = KERNEL_WIDTH * MEDIAN_3D
_NEAREST = 1e-6
# Errors of the canonical pointmap are alike over more than a cell, and those of a match in both of
# its directions: with noise of which half is smooth, deviations would be a third of the errors.
_ALIKE = 3.0


@dataclass(frozen=True)
class BundleState:
    """The unknowns, in double precision.

    Attributes:
        cameras: (N, 4, 4) similarities from images' frames to the world.
        pinholes: focals and principal points.
        corrections: (cells,) log of an anchor's depth over the canonical one, per image.
    """

    cameras: Tensor
    pinholes: Pinholes
    corrections: tuple[Tensor, ...]


@dataclass(frozen=True)
class Anchors:
    """Of the anchors of an image that matches see: information (A,), slope (A,), and coupling to
    the slots of the image and of those it is matched with, (A, 1 + others, SLOTS)."""

    information: Tensor
    slope: Tensor
    coupling: Tensor


@dataclass(frozen=True)
class Spread:
    """Standard deviations of residuals: ``pixels``, and ``depth`` relative to it."""

    pixels: float
    depth: float

    def whiten(self, residual: Tensor) -> Tensor:
        """Residuals (..., 3) of two pixels and a log-depth, or derivatives (3, D) of them."""
        return residual / torch.tensor([self.pixels, self.pixels, self.depth]).to(residual)


class Bundle:
    """Matches seen from both of their images.

    Args:
        matches: verified, of pairs of images.
        depths: (H, W) canonical of every image; matched pixels have some.
        cells: of every image.
        focals: (N, 2) to which unknown ones are pulled.
        depth_spread: relative standard deviation of canonical depth.
    """

    def __init__(
        self,
        matches: Sequence[PairMatches],
        depths: Sequence[Tensor],
        cells: Sequence[Cells],
        focals: Tensor,
        depth_spread: float,
    ):
        self.hosts = [hosted(n, matches, depths, cells) for n in range(len(depths))]
        self.cells = cells
        self.prior_focals = focals.clone()
        self.depth_spread = depth_spread
        self.precision = _DEPTH_COUNTS / depth_spread**2
        self.focal_precision = _FOCAL_COUNTS / max(depth_spread, _LEAST_FOCAL_SPREAD) ** 2

    def start(self, cameras: Tensor, pinholes: Pinholes) -> BundleState:
        """The state in which every image has its canonical depth."""
        none = tuple(torch.zeros(len(cells), dtype=torch.float64) for cells in self.cells)
        return BundleState(cameras.double(), pinholes, none)

    def refine(
        self,
        state: BundleState,
        free: Tensor,
        niter: int,
        opt_depth: bool = True,
        progress: Callable[[int, float], None] | None = None,
    ) -> BundleState:
        """The state of least reprojection error.

        In stages, as the kernel has many minima and what is least certain moves last: cameras
        alone, then depth with them, then focals with both.

        Args:
            free: (N, 8) bool, which slots of an image may change; a shared focal is one unknown.
            niter: most rounds of a stage.
            opt_depth: whether anchors move; images keep the shape of their canonical depth if not.
        """
        cameras = free.clone()
        cameras[:, _FOCAL] = False
        stages = [(cameras, False), (cameras, opt_depth), (free, opt_depth)]
        # Each adds to what the one before had; what adds nothing is left out.
        stages = [one for n, one in enumerate(stages) if n == 0 or not _same(one, stages[n - 1])]
        for n, (moving, depth) in enumerate(stages):

            def report(done: int, cost: float, n: int = n) -> None:
                if progress is not None:
                    progress((n * niter + done) // len(stages), cost)

            state = self._refine(state, moving, niter, depth, report)
        return state

    def spread(self, state: BundleState) -> Spread:
        """How far residuals are spread, as their medians show it."""
        residuals = torch.cat([self._residuals(n, state)[0] for n in self._used()])
        pixels = float(residuals[:, :2].norm(dim=1).median()) / MEDIAN_2D
        depth = float(residuals[:, 2].abs().median()) / MEDIAN_1D
        return Spread(max(pixels, _LEAST_PIXELS), max(depth, _LEAST_DEPTH))

    def deviations(self, state: BundleState, free: Tensor, opt_depth: bool = True) -> list[Tensor]:
        """(cells,) relative standard deviations of depth, of every image.

        From the inverse of the equations (Laplace's approximation): of an anchor in its camera, and
        of that camera's scale and whatever else moves with it, against the mean scale of all
        images, as the world's own scale is nobody's error. Matches are taken for less than they
        are, as near ones err alike.

        Args:
            free, opt_depth: as for ``refine``.
        """
        unknowns = self._unknowns(state, free)
        spread = self.spread(state)
        spread = Spread(_ALIKE * spread.pixels, _ALIKE * spread.depth)
        equations = self._equations(state, spread, unknowns, opt_depth, self.depth_spread**-2)
        hessian = equations.hessian
        covariance = torch.linalg.pinv(hessian, hermitian=True) if unknowns.count else hessian
        count = len(self.hosts)
        scales = torch.zeros(count * SLOTS, dtype=torch.float64)
        scales[_SCALE::SLOTS] = 1 / count
        mean_scale = unknowns.reduce_rows(scales[None])[0]
        found = []
        for n, cells in enumerate(self.cells):
            anchors = equations.extra.get(n)
            rows = torch.zeros(len(cells), unknowns.count, dtype=torch.float64)
            own = torch.zeros(1, count * SLOTS, dtype=torch.float64)
            own[0, n * SLOTS + _SCALE] = 1
            rows += unknowns.reduce_rows(own) - mean_scale
            variance = torch.full((len(cells),), self.depth_spread**2, dtype=torch.float64)
            if anchors is not None:
                images = torch.cat([torch.tensor([n]), self.hosts[n].others])
                around = torch.zeros(len(cells), count, SLOTS, dtype=torch.float64)
                around[:, images] = anchors.coupling / anchors.information[:, None, None]
                rows -= unknowns.reduce_rows(around.flatten(1))
                variance = 1 / anchors.information
            variance = variance + ((rows @ covariance) * rows).sum(1).clamp_min(0)
            found.append(variance.sqrt())
        return found

    def triangulated_deviations(self, state: BundleState) -> list[Tensor]:
        """(cells,) relative standard deviations of depth by matched pixels alone, in cameras that
        are right; infinite where nothing matches."""
        spread = replace(self.spread(state), depth=math.inf)
        found = []
        for n, cells in enumerate(self.cells):
            information = torch.zeros(len(cells), dtype=torch.float64)
            if len(self.hosts[n]):
                information = self._host_equations(n, state, spread)[2].information
            found.append(information.rsqrt())
        return found

    def triangulate(self, state: BundleState, niter: int = 10) -> BundleState:
        """The state with anchors where their matches alone, without the prior, put them.

        Anchors without matches stay, and those that matches hardly fix, such as without parallax,
        may go anywhere; ``triangulated_deviations`` tells which.
        """
        spread = replace(self.spread(state), depth=math.inf)
        corrections = list(state.corrections)
        for n in self._used():
            for _ in range(niter):
                now = replace(state, corrections=tuple(corrections))
                anchors = self._host_equations(n, now, spread)[2]
                step = -anchors.slope / anchors.information.clamp_min(1e-9)
                corrections[n] = corrections[n] + step.clamp(-0.2, 0.2)
        return replace(state, corrections=tuple(corrections))

    def _refine(
        self,
        state: BundleState,
        free: Tensor,
        niter: int,
        opt_depth: bool,
        progress: Callable[[int, float], None],
    ) -> BundleState:
        unknowns = self._unknowns(state, free)
        spread = self.spread(state)

        def linearise(state: BundleState) -> Equations:
            nonlocal spread
            spread = self.spread(state)
            return self._equations(state, spread, unknowns, opt_depth)

        def moved(state: BundleState, step: Tensor, equations: Equations) -> BundleState:
            return self._moved(state, unknowns.expand(step).view(-1, SLOTS), equations.extra)

        def cost(state: BundleState) -> float:
            return self._cost(state, spread)

        return minimise(state, linearise, moved, cost, niter, _TOLERANCE, progress)

    @staticmethod
    def _unknowns(state: BundleState, free: Tensor) -> Unknowns:
        shared = torch.zeros(SLOTS, dtype=torch.bool)
        shared[_FOCAL] = state.pinholes.shared
        return Unknowns.of(free, shared)

    def _used(self) -> list[int]:
        return [n for n, host in enumerate(self.hosts) if len(host)]

    def _residuals(self, n: int, state: BundleState) -> tuple[Tensor, ...]:
        """Of image n's matches: target - projection (K, 3), in pixels and log-depth; points in n
        and in the other image, maps between (K, 3, 3), and focals of the other (K, 2)."""
        host, pinholes = self.hosts[n], state.pinholes
        depth = host.depth * state.corrections[n][host.cell].exp()
        points = depth[:, None] * pinholes.rays(n, host.pixels)
        between = torch.linalg.inv(state.cameras[host.others]) @ state.cameras[n]
        there = apply(between[host.slot], points[:, None])[:, 0]
        focal = pinholes.focals[host.others][host.slot]
        centre = pinholes.centres[host.others][host.slot]
        depth = there[:, 2].clamp_min(_NEAREST)
        offset = host.targets - (focal * there[:, :2] / depth[:, None] + centre)
        known = host.target_depth.log() + self._target_corrections(host, state)
        residual = torch.cat([offset, (known - depth.log())[:, None]], 1)
        return residual, points, there, between[host.slot, :3, :3], focal

    def _target_corrections(self, host: Hosted, state: BundleState) -> Tensor:
        """(K,) of the cells that matches lie in in other images."""
        around = [state.corrections[other] for other in host.others.tolist()]
        starts = torch.tensor([0, *(len(one) for one in around[:-1])]).cumsum(0)
        return torch.cat(around)[starts[host.slot] + host.target_cell]

    def _cost(self, state: BundleState, spread: Spread) -> float:
        total = 0.0
        for n in self._used():
            squared = spread.whiten(self._residuals(n, state)[0]).square().sum(1) / _WIDTH**2
            total += float((self.hosts[n].votes * squared / (1 + squared)).sum()) * _WIDTH**2
            total += self.precision * float(state.corrections[n].square().sum())
        shift = (state.pinholes.focals / self.prior_focals).log()[:, 0]
        return total + self.focal_precision * float(shift.square().sum())

    def _equations(
        self,
        state: BundleState,
        spread: Spread,
        unknowns: Unknowns,
        opt_depth: bool,
        precision: float | None = None,
    ) -> Equations:
        """Of all unknowns; ``precision`` of anchors' priors instead of the one that steers."""
        precision = self.precision if precision is None else precision
        count = len(self.hosts)
        hessian = torch.zeros(count, count, SLOTS, SLOTS, dtype=torch.float64)
        gradient = torch.zeros(count, SLOTS, dtype=torch.float64)
        eliminated: dict[int, Anchors] = {}
        for n in self._used():
            blocks, slopes, anchors = self._host_equations(n, state, spread)
            if opt_depth:
                anchors = replace(
                    anchors,
                    information=anchors.information + precision,
                    slope=anchors.slope + precision * state.corrections[n],
                )
                coupling = anchors.coupling.flatten(1)
                scaled = coupling / anchors.information[:, None]
                blocks = blocks - _blocks(coupling.T @ scaled)
                slopes = slopes - (scaled.T @ anchors.slope).view_as(slopes)
                eliminated[n] = anchors
            images = torch.cat([torch.tensor([n]), self.hosts[n].others])
            hessian[images[:, None], images] += blocks
            gradient[images] += slopes
        shift = (state.pinholes.focals / self.prior_focals).log()[:, 0]
        everyone = torch.arange(count)
        hessian[everyone, everyone, _FOCAL, _FOCAL] += self.focal_precision
        gradient[:, _FOCAL] += self.focal_precision * shift
        whole = hessian.transpose(1, 2).reshape(count * SLOTS, count * SLOTS)
        reduced = unknowns.reduce(whole, gradient.flatten())
        return Equations(*reduced, self._cost(state, spread), eliminated)

    def _host_equations(
        self, n: int, state: BundleState, spread: Spread
    ) -> tuple[Tensor, Tensor, Anchors]:
        """Hessian blocks (1 + others, 1 + others, SLOTS, SLOTS) and slopes (1 + others, SLOTS) of
        the image and those it is matched with, and what its anchors add, without prior."""
        host = self.hosts[n]
        residual, points, there, linear, focal = self._residuals(n, state)
        depth = there[:, 2].clamp_min(_NEAREST)
        zero = torch.zeros_like(depth)
        flat = there[:, :2] / depth[:, None]
        rows = [
            torch.stack([focal[:, 0] / depth, zero, -focal[:, 0] * flat[:, 0] / depth], -1),
            torch.stack([zero, focal[:, 1] / depth, -focal[:, 1] * flat[:, 1] / depth], -1),
            torch.stack([zero, zero, 1 / depth], -1),
        ]
        by_point = torch.stack(rows, 1)
        by_own_point = by_point @ linear
        # A longer focal of its own draws a point of given depth towards the axis.
        inwards = torch.cat([-points[:, :2], zero[:, None]], 1)
        own = -by_own_point @ torch.cat([tangent(points), inwards[..., None]], -1)
        by_focal = -torch.cat([focal * flat, zero[:, None]], 1)
        other = torch.cat([by_point @ tangent(there), by_focal[..., None]], -1)
        by_depth = spread.whiten(-(by_own_point @ points[..., None])[..., 0])
        own, other = (spread.whiten(part.mT).mT for part in (own, other))

        residual = spread.whiten(residual)
        squared = residual.square().sum(1) / _WIDTH**2
        # Behind the camera there is no projection to speak of.
        weight = torch.where(there[:, 2] > _NEAREST, host.votes / (1 + squared).square(), 0.0)
        root = weight.sqrt()[:, None]
        residual, by_depth = root * residual, root * by_depth
        own, other = root[..., None] * own, root[..., None] * other

        size, cells = 1 + len(host.others), len(self.cells[n])
        blocks = own.new_zeros(size, size, SLOTS, SLOTS)
        slopes = own.new_zeros(size, SLOTS)
        crossed = own.new_zeros(size - 1, SLOTS, SLOTS).index_add_(0, host.slot, own.mT @ other)
        others = own.new_zeros(size - 1, SLOTS, SLOTS).index_add_(0, host.slot, other.mT @ other)
        blocks[0, 0] = (own.mT @ own).sum(0)
        blocks[0, 1:], blocks[1:, 0] = crossed, crossed.mT
        diagonal = torch.arange(1, size)
        blocks[diagonal, diagonal] = others
        slopes[0] = (own * residual[..., None]).sum((0, 1))
        slopes[1:].index_add_(0, host.slot, (other * residual[..., None]).sum(1))

        coupling = own.new_zeros(cells, size, SLOTS)
        coupling[:, 0].index_add_(0, host.cell, (own * by_depth[..., None]).sum(1))
        coupling.view(cells * size, SLOTS).index_add_(
            0, host.cell * size + host.slot + 1, (other * by_depth[..., None]).sum(1)
        )
        information = own.new_zeros(cells).index_add_(0, host.cell, by_depth.square().sum(1))
        slope = own.new_zeros(cells).index_add_(0, host.cell, (by_depth * residual).sum(1))
        return blocks, slopes, Anchors(information, slope, coupling)

    def _moved(
        self, state: BundleState, update: Tensor, eliminated: dict[int, Anchors]
    ) -> BundleState:
        corrections = list(state.corrections)
        for n, anchors in eliminated.items():
            images = torch.cat([torch.tensor([n]), self.hosts[n].others])
            around = anchors.coupling.flatten(1) @ update[images].flatten()
            corrections[n] = corrections[n] - (anchors.slope + around) / anchors.information
        grown = state.pinholes.focals * update[:, _FOCAL:].exp()
        return BundleState(
            state.cameras @ exponential(update[:, :_FOCAL]),
            replace(state.pinholes, focals=grown),
            tuple(corrections),
        )


def _same(stage: tuple[Tensor, bool], other: tuple[Tensor, bool]) -> bool:
    return stage[1] == other[1] and torch.equal(stage[0], other[0])


def _blocks(matrix: Tensor) -> Tensor:
    size = len(matrix) // SLOTS
    return matrix.view(size, SLOTS, size, SLOTS).transpose(1, 2)
