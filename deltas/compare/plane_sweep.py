"""Depth from a plane sweep: a cost volume of warped neighbours, and the best plane of each pixel.

Collins, A Space-Sweep Approach to True Multi-Image Matching, CVPR 1996; occlusions as in Kang,
Szeliski and Chai, Handling Occlusions in Dense Multi-View Stereo, CVPR 2001. Nothing is learned and
nothing smoothed: the classical partner of networks that build cost volumes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.compare.methods import Depth, DepthMethod, Frames

# Variance of grey values in [0, 1] that noise alone has: windows below it match nothing well.
_NOISE = 1e-4


class PlaneSweep(DepthMethod):
    """Planes at equal steps of inverse depth; the cost is 1 - normalised cross-correlation.

    Correlation is over windows around each pixel of the anchor and of the neighbour as the plane
    shows it, so that exposure does not matter. Of a pixel's costs in those neighbours that see it
    on the plane the better half is averaged, because behind an edge only some see what the anchor
    does; then costs are averaged over windows, and a parabola through the best plane and its two
    neighbours gives a depth between planes. The uncertainty is the best cost over the mean of all
    planes' costs: near 1 where all fit alike. NaN where no plane is seen by any neighbour.

    Args:
        mindepth, maxdepth: of the first and the last plane, metres.
        planes: their number, 3 or more.
        window: odd side, in pixels, of what is correlated.
        aggregation: odd side of the windows over which costs are averaged. Defaults of both are
            the best of those tried on a kitchen's weak texture at 320x240 (docs/deltas.md).
    """

    name = "planesweep"

    def __init__(
        self,
        mindepth: float = 0.5,
        maxdepth: float = 10.0,
        planes: int = 64,
        window: int = 31,
        aggregation: int = 41,
    ) -> None:
        if planes < 3:
            raise ValueError(f"planes={planes}: a sweep needs 3 or more")
        if not 0 < mindepth < maxdepth:
            raise ValueError(f"mindepth={mindepth} must be positive and below maxdepth={maxdepth}")
        for name, side in (("window", window), ("aggregation", aggregation)):
            if side < 1 or side % 2 == 0:
                raise ValueError(f"{name}={side}: expected an odd number of pixels, 1 or more")
        self.inverse_depths = torch.linspace(1 / mindepth, 1 / maxdepth, planes)
        self.window, self.aggregation = window, aggregation

    @torch.inference_mode()
    def predict(self, frames: Frames) -> Depth:
        costs = self.costs(frames)
        inverse, ratio = _best_plane(costs, self.inverse_depths)
        return Depth((1 / inverse).numpy(), ratio.numpy())

    def costs(self, frames: Frames) -> Tensor:
        """Cost volume (D, H, W) in [0, 2]; NaN where no neighbour sees the plane."""
        grey = (frames.images.mean(1, keepdim=True) + 1) / 2
        anchor = _Window.of(grey[:1], self.window)
        warps = [
            _Warp.of(frames.intrinsics[0], frames.intrinsics[view], to_view, frames.size)
            for view, to_view in enumerate(frames.from_anchor(), start=1)
        ]
        costs = [
            _better_half(
                torch.cat(
                    [
                        self._cost(anchor, grey[view : view + 1], warp, float(inverse))
                        for view, warp in enumerate(warps, start=1)
                    ]
                )
            )
            for inverse in self.inverse_depths
        ]
        return _mean_of_known(torch.stack(costs)[:, None], self.aggregation)[:, 0]

    def _cost(self, anchor: "_Window", grey: Tensor, warp: "_Warp", inverse: float) -> Tensor:
        """(1, H, W) of one neighbour and plane; NaN where the neighbour does not see it."""
        grid, seen = warp.grid(inverse)
        # Zeros beyond the border would be edges; its own pixels repeated are none.
        moved = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)
        correlation = anchor.correlation(_Window.of(moved, self.window))
        return torch.where(seen, 1 - correlation[:, 0], torch.nan)


class _Window:
    """Grey values (1, 1, H, W) with their mean and variance in the window around each pixel."""

    def __init__(self, grey: Tensor, mean: Tensor, variance: Tensor, side: int) -> None:
        self.grey, self.mean, self.variance, self.side = grey, mean, variance, side

    @classmethod
    def of(cls, grey: Tensor, side: int) -> "_Window":
        mean = _box(grey, side)
        return cls(grey, mean, (_box(grey.square(), side) - mean.square()).clamp_min(0), side)

    def correlation(self, other: "_Window") -> Tensor:
        """(1, 1, H, W) in [-1, 1], 0 where there is no texture."""
        together = _box(self.grey * other.grey, self.side) - self.mean * other.mean
        spread = (self.variance + _NOISE) * (other.variance + _NOISE)
        return together / spread.sqrt()


class _Warp:
    """Where a neighbour sees the anchor's pixels on planes before the anchor.

    A pixel x at depth d is seen at ``infinity`` x + ``epipole`` / d, homogeneous.
    """

    def __init__(self, infinity: Tensor, epipole: Tensor) -> None:
        self.infinity, self.epipole = infinity, epipole

    @classmethod
    def of(
        cls, camera: np.ndarray, other: np.ndarray, to_view: np.ndarray, size: tuple[int, int]
    ) -> "_Warp":
        y, x = np.mgrid[: size[0], : size[1]]
        pixels = np.stack([x, y, np.ones_like(x)], -1)
        infinity = pixels @ (other @ to_view[:3, :3] @ np.linalg.inv(camera)).T
        return cls(*(torch.from_numpy(v).float() for v in (infinity, other @ to_view[:3, 3])))

    def grid(self, inverse: float) -> tuple[Tensor, Tensor]:
        """Places (1, H, W, 2) for ``grid_sample``, and whether they are seen (1, H, W)."""
        homogeneous = self.infinity + inverse * self.epipole
        z = homogeneous[..., 2:]
        before = z > 1e-6
        pixels = homogeneous[..., :2] / torch.where(before, z, 1)
        size = pixels.new_tensor(self.infinity.shape[1::-1])
        grid = (2 * pixels + 1) / size - 1
        seen = before[..., 0] & (grid.abs() <= 1).all(-1)
        return grid[None], seen[None]


def _best_plane(costs: Tensor, inverse_depths: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse depths (H, W) of least cost, and that over the mean cost; NaN where none is known."""
    known = costs.isfinite()
    ranked = torch.where(known, costs, torch.inf)
    best, place = ranked.min(0)
    last = len(costs) - 1
    left, right = (
        ranked.gather(0, (place + step).clamp(0, last)[None])[0] - best for step in (-1, 1)
    )
    between = (place > 0) & (place < last) & (left + right > 0) & (left + right).isfinite()
    shift = torch.where(between, (left - right) / (2 * (left + right)), 0.0)
    inverse = inverse_depths[place] + shift * (inverse_depths[1] - inverse_depths[0])
    seen = known.any(0)
    ratio = best / costs.nanmean(0).clamp_min(torch.finfo(costs.dtype).tiny)
    return torch.where(seen, inverse, torch.nan), torch.where(seen, ratio, torch.nan)


def _better_half(costs: Tensor) -> Tensor:
    """Mean (H, W) of the lower half, rounded up, of those of costs (V, H, W) that are not NaN."""
    ordered = costs.sort(0).values
    count = ordered.isfinite().sum(0)
    place = torch.arange(len(costs))[:, None, None]
    return torch.where(place < (count + 1) // 2, ordered, torch.nan).nanmean(0)


def _mean_of_known(maps: Tensor, side: int) -> Tensor:
    """Means over windows of those of (N, 1, H, W) that are not NaN; NaN stays."""
    known = maps.isfinite()
    share = _box(known.to(maps.dtype), side)
    mean = _box(torch.where(known, maps, 0.0), side) / share
    return torch.where(known, mean, torch.nan)


def _box(maps: Tensor, side: int) -> Tensor:
    """Means (N, 1, H, W) over windows, cut at the border."""
    half = side // 2
    rows = F.avg_pool2d(maps, (side, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, half), count_include_pad=False)
